'use strict'
// webrtc-bootstrap's client. client.js HOST:PORT [--simple-peer 6|9] [--no-trickle]
// Commands: root {secret}, answers whoever asks; connect {peer}, a connection to the root,
//   named `peer`; send {peer, data} or {peer, base64}; destroy {peer}.
// Events: root; request {origin}; connect {peer}; data {peer, data} or {peer, base64};
//   close {peer}; error {peer, message}. The peers of a root are named by their origin.

const { options, say, listen, peerOptions, useSimplePeer } = require('./lib')
const opts = options()
useSimplePeer(opts['simple-peer'])
const Client = require('webrtc-bootstrap')

const bootstrap = new Client(opts._[0])
const peers = {}

function connect (name, request) {
  const peer = bootstrap.connect(request, { peerOpts: peerOptions(!opts['no-trickle']) })
  peers[name] = peer
  peer
    .on('connect', function () { say('connect', { peer: name }) })
    .on('data', function (data) {
      const text = data.toString()
      if (Buffer.from(text).equals(data)) say('data', { peer: name, data: text })
      else say('data', { peer: name, base64: data.toString('base64') })
    })
    .on('close', function () { say('close', { peer: name }) })
    .on('error', function (err) { say('error', { peer: name, message: err.message }) })
}

listen({
  root ({ secret }) {
    // As in webrtc-bootstrap's README.
    bootstrap.root(secret, function (request) {
      say('request', { origin: request.origin })
      if (!peers[request.origin]) connect(request.origin, request)
      else peers[request.origin].signal(request.signal)
    }, function (err) {
      if (err) say('error', { message: err.message })
      else say('root')
    })
  },
  connect ({ peer }) { connect(peer) },
  send ({ peer, data, base64 }) {
    peers[peer].send(base64 === undefined ? data : Buffer.from(base64, 'base64'))
  },
  destroy ({ peer }) { peers[peer].destroy() }
})
