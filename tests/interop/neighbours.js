'use strict'
// Peers of n2n-overlay-wrtc, as many as wanted. neighbours.js [--no-trickle]
// Commands: make {peer, pid} makes one named `peer`; initiate {peer}, accept {peer, message} and
//   finalize {peer, message} are the three ways of connect() by callbacks;
//   connect {peer, from, to}, with null for the peer itself; disconnect {peer, end};
//   send {peer, to, data}; state {peer}.
// Events, each with `peer`: carry {message}, what a callback of connect() was given; open {end};
//   close {end}; fail {end}; receive {end, data}; sent {to}; failed {to, message};
//   state {inview: {end: count}, outview}.

const { options, say, listen, peerOptions } = require('./lib')
const opts = options()
const N2N = require('n2n-overlay-wrtc')

const peers = {}

function carry (peer) {
  return function (message) { say('carry', { peer, message }) }
}

listen({
  make ({ peer, pid }) {
    const config = peerOptions(!opts['no-trickle'])
    peers[peer] = new N2N({ pid, peer, config })
      .on('open', function (end) { say('open', { peer, end }) })
      .on('close', function (end) { say('close', { peer, end }) })
      .on('fail', function (end) { say('fail', { peer, end }) })
      .on('receive', function (end, data) { say('receive', { peer, end, data }) })
    say('made', { peer })
  },
  initiate ({ peer }) { peers[peer].connect(carry(peer)) },
  accept ({ peer, message }) { peers[peer].connect(carry(peer), message) },
  finalize ({ peer, message }) { peers[peer].connect(message) },
  connect ({ peer, from, to }) { peers[peer].connect(from, to) },
  disconnect ({ peer, end }) { peers[peer].disconnect(end) },
  send ({ peer, to, data }) {
    peers[peer].send(to, data)
      .then(function () { say('sent', { peer, to }) })
      .catch(function (err) { say('failed', { peer, to, message: String(err) }) })
  },
  state ({ peer }) {
    const inview = Object.fromEntries(peers[peer].getInview())
    const outview = Object.fromEntries(peers[peer].getOutview())
    say('state', { peer, inview, outview })
  }
})
