'use strict'
// Peers of spray-wrtc, as many as wanted. sampling.js [--no-trickle]
// Commands: make {peer} makes one named `peer`; join {peer}, accept {peer, message} and
//   finalize {peer, message} are the three ways of its first connection, by callbacks;
//   exchange {peer} begins an exchange now, leave {peer, time} leaves; state {peer}.
// Events, each with `peer`: carry {message}, what a callback was given; joined {contact};
//   refused {message}; open {end}; close {end}; statechange {state};
//   state {view: {end: arcs}, inview: {end: count}, outview}.

const { options, say, listen, peerOptions } = require('./lib')
const opts = options()
const Spray = require('spray-wrtc')

const HOUR = 3600 * 1000
const peers = {}

function carry (peer) {
  return function (message) { say('carry', { peer, message }) }
}

listen({
  make ({ peer }) {
    const config = peerOptions(!opts['no-trickle'])
    // Exchanges are begun by command, or else nobody could tell what comes of one.
    peers[peer] = new Spray({ peer, config, delta: HOUR })
      .on('open', function (end) { say('open', { peer, end }) })
      .on('close', function (end) { say('close', { peer, end }) })
      .on('statechange', function (state) { say('statechange', { peer, state }) })
    say('made', { peer })
  },
  join ({ peer }) {
    peers[peer].join(carry(peer))
      .then(function (contact) { say('joined', { peer, contact }) })
      .catch(function (err) { say('refused', { peer, message: String(err) }) })
  },
  accept ({ peer, message }) { peers[peer].connect(carry(peer), message) },
  finalize ({ peer, message }) { peers[peer].connect(message) },
  exchange ({ peer }) { peers[peer]._exchange() },
  leave ({ peer, time }) { peers[peer].leave(time) },
  state ({ peer }) {
    const view = {}
    peers[peer].partialView.forEach(function (ages, end) { view[end] = ages.length })
    const inview = Object.fromEntries(peers[peer].getInview())
    const outview = Object.fromEntries(peers[peer].getOutview())
    say('state', { peer, view, inview, outview })
  }
})
