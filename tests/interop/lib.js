'use strict'
// What the drivers share. A driver runs one of the JavaScript originals, unchanged, for a test in
// Python: commands come in on stdin, events go out on stdout, both as lines of JSON. It ends when
// stdin does. What the originals throw is not caught: the process dies of it, and the test fails.

const Module = require('module')
const readline = require('readline')

// Options of the command line: --name value, or --name alone; the rest in order under `_`.
function options () {
  const found = { _: [] }
  const words = process.argv.slice(2)
  while (words.length) {
    const word = words.shift()
    if (!word.startsWith('--')) found._.push(word)
    else found[word.slice(2)] = words.length && !words[0].startsWith('--') ? words.shift() : true
  }
  return found
}

function say (event, fields) {
  process.stdout.write(JSON.stringify({ ev: event, ...fields }) + '\n')
}

// Calls commands[cmd](command) for each line.
function listen (commands) {
  readline.createInterface({ input: process.stdin })
    .on('line', function (line) {
      const command = JSON.parse(line)
      if (!Object.hasOwn(commands, command.cmd)) throw new Error('unknown command ' + line)
      commands[command.cmd](command)
    })
    // Not process.exit: wrtc's native threads are still at work, and now and then what an orderly
    // exit takes away from under them makes the process crash.
    .on('close', function () { process.kill(process.pid, 'SIGKILL') })
}

// The options for simple-peer: a native WebRTC stack, and no address outside this machine.
// `trickle` false: the offer or answer waits for all candidates and holds them.
function peerOptions (trickle) {
  return { wrtc: require('@roamhq/wrtc'), config: { iceServers: [] }, trickle: trickle !== false }
}

// webrtc-bootstrap asks for simple-peer 6; with `version` 9 it gets what browsers have today.
function useSimplePeer (version) {
  if (Number(version) !== 9) return
  const resolve = Module._resolveFilename
  const newer = require.resolve('simple-peer')
  Module._resolveFilename = function (request, ...rest) {
    return request === 'simple-peer' ? newer : resolve.call(this, request, ...rest)
  }
}

module.exports = { options, say, listen, peerOptions, useSimplePeer }
