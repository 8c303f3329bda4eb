"""What carries frames: memory, WebSocket and WebRTC, behind one interface."""
