'use strict'
// The JavaScript stack's side of `python -m benchmarks.join`: webrtc-bootstrap's server, a root and
// nodes of webrtc-tree-overlay, in this one process. join.js NODES AT_ONCE MAX_DEGREE TIMEOUT_MS.
// AT_ONCE joins are under way at a time. Prints one line of JSON: nodes, at_once, joined, failed,
// seconds, cpu_ms, peak_kib. The native stack opens sockets by the square of the connections: with
// too many at once it runs out of them, and the process may die.

const http = require('http')
const path = require('path')
const load = require('module').createRequire(path.join(__dirname, '../tests/interop/package.json'))
const Client = load('webrtc-bootstrap')
const Node = load('webrtc-tree-overlay')
const wrtc = load('@roamhq/wrtc')

const [nodes, atOnce, maxDegree, timeout] = process.argv.slice(2).map(Number)
const peerOpts = () => ({ wrtc, config: { iceServers: [] } })

const httpServer = http.createServer()
httpServer.listen(0, '127.0.0.1', function () {
  const host = '127.0.0.1:' + httpServer.address().port
  new Client.Server('secret', { httpServer })
  const bootstrap = new Client(host)
  const root = new Node(bootstrap, { peerOpts: peerOpts(), maxDegree })
  root.becomeRoot('secret')
  bootstrap.rootSocket.once('connect', function () { joinAll(host) })
})

function joinAll (host) {
  const startedAt = process.hrtime.bigint()
  const before = process.cpuUsage()
  let started = 0
  let joined = 0
  for (let i = 0; i < atOnce; i++) join()
  setTimeout(report, timeout)

  function join () {
    if (started === nodes) return
    started++
    new Node(new Client(host), { peerOpts: peerOpts(), maxDegree, requestTimeoutInMs: timeout })
      .on('parent-connect', function () {
        if (++joined === nodes) report()
        else join()
      })
      .join()
  }

  function report () {
    const used = process.cpuUsage(before)
    console.log(JSON.stringify({
      nodes,
      at_once: atOnce,
      joined,
      failed: nodes - joined,
      seconds: Number(process.hrtime.bigint() - startedAt) / 1e9,
      cpu_ms: (used.user + used.system) / 1000,
      peak_kib: process.resourceUsage().maxRSS
    }))
    // Not process.exit, in which wrtc's native threads crash now and then.
    process.kill(process.pid, 'SIGKILL')
  }
}
