'use strict'
// Peers of peer-relay, as many as wanted.
// Commands: peer {node, bootstrap: [URL], listens, wrtc} makes one named `node`;
//   send {node, to, data}; connect {node, to}; disconnect {node, to}; state {node}; close {node};
//   socket {node, bootstrap, port} makes a datagram socket; sendto {node, text, port, address}.
// Events, each with `node`: ready {id, url}; peer {id}; message {from, data};
//   state {peers: [{id, transport}]}; bound {id, port}; datagram {text, address, port}.

const net = require('net')
const { say, listen } = require('./lib')

// It listens on all addresses of the machine and cannot be told not to.
const listenOn = net.Server.prototype.listen
net.Server.prototype.listen = function (port, host, ...rest) {
  return listenOn.call(this, port, host === '0.0.0.0' ? '127.0.0.1' : host, ...rest)
}

const PeerRelay = require('peer-relay')
// Its simple-peer asks a public STUN server unless told otherwise, which it gives no way to do.
const original = require.resolve('peer-relay')
require(require.resolve('simple-peer', { paths: [original] })).config = { iceServers: [] }

const peers = {}
const sockets = {}

function follow (name, client) {
  peers[name] = client
  client.on('peer', function (id) { say('peer', { node: name, id: id.toString('hex') }) })
  client.on('message', function (data, from) {
    say('message', { node: name, from: from.toString('hex'), data })
  })
}

function options ({ bootstrap, listens, wrtc }) {
  return {
    port: listens ? 0 : undefined,
    bootstrap: bootstrap || [],
    wrtc: wrtc ? require('@roamhq/wrtc') : undefined
  }
}

function id (hex) { return Buffer.from(hex, 'hex') }

listen({
  peer (command) {
    const client = new PeerRelay(options(command))
    follow(command.node, client)
    const server = client.wsConnector._wss
    const ready = function () {
      const url = server ? 'ws://127.0.0.1:' + server._server.address().port : null
      say('ready', { node: command.node, id: client.id.toString('hex'), url })
    }
    if (server) server.on('listening', ready)
    else ready()
  },
  send ({ node, to, data }) { peers[node].send(id(to), data) },
  connect ({ node, to }) { peers[node].connect(id(to)) },
  disconnect ({ node, to }) { peers[node].disconnect(id(to)) },
  state ({ node }) {
    const found = peers[node].peers.toArray().map(function (channel) {
      return { id: channel.id.toString('hex'), transport: channel._sp ? 'webrtc' : 'websocket' }
    })
    say('state', { node, peers: found })
  },
  close ({ node }) {
    peers[node].destroy(function () {})
    delete peers[node]
  },
  socket (command) {
    const name = command.node
    const socket = new PeerRelay.Socket(options(command))
    sockets[name] = socket
    socket.on('message', function (data, info) {
      say('datagram', { node: name, text: data.toString(), address: info.address, port: info.port })
    })
    socket.bind(command.port, function () {
      say('bound', { node: name, id: socket.address().address, port: socket.address().port })
    })
  },
  sendto ({ node, text, port, address }) {
    const data = Buffer.from(text)
    sockets[node].send(data, 0, data.length, port, address)
  }
})
