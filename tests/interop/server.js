'use strict'
// webrtc-bootstrap's server on a free port. server.js [--secret S] [--timeout MS] [--seed N]
// Events: listening {port}.

const http = require('http')
const { options, say, listen } = require('./lib')
const { Server } = require('webrtc-bootstrap')

const { secret = 'secret', timeout, seed } = options()
const httpServer = http.createServer()
httpServer.listen(0, '127.0.0.1', function () {
  say('listening', { port: httpServer.address().port })
})
const server = new Server(secret, { httpServer, timeout: Number(timeout) || undefined, seed })
listen({
  prospects () { say('prospects', { count: Object.keys(server.prospects).length }) }
})
