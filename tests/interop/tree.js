'use strict'
// Nodes of webrtc-tree-overlay, as many as wanted. tree.js HOST:PORT [--simple-peer 6|9] [--no-trickle]
// Commands: root {node, secret, maxDegree}, join {node, maxDegree} make one named `node`;
//   send {node, to, data}, with `to` 'parent' or the id of a child; raw {node, to, frame};
//   state {node}; close {node}.
// Events, each with `node`: parent-connect, parent-close, parent-error {message};
//   child-connect {id}, child-close {id}, child-error {id, message}; data {source, data}, with
//   `source` 'parent' or the child's id; state {id, parent, children: [id], candidates: [id]}.

const { options, say, listen, peerOptions, useSimplePeer } = require('./lib')
const opts = options()
useSimplePeer(opts['simple-peer'])
const Client = require('webrtc-bootstrap')
const Node = require('webrtc-tree-overlay')

const nodes = {}

function make ({ node: name, maxDegree }) {
  const bootstrap = new Client(opts._[0])
  const node = new Node(bootstrap, { peerOpts: peerOptions(!opts['no-trickle']), maxDegree })
  nodes[name] = { node, bootstrap, heard: {} }
  return node
    .on('parent-connect', function () { say('parent-connect', { node: name }) })
    .on('parent-close', function () { say('parent-close', { node: name }) })
    .on('parent-error', function (_, err) {
      say('parent-error', { node: name, message: String(err) })
    })
    .on('child-connect', function (child) { say('child-connect', { node: name, id: child.id }) })
    .on('child-close', function (child) { say('child-close', { node: name, id: child.id }) })
    .on('child-error', function (child, err) {
      say('child-error', { node: name, id: child.id, message: String(err) })
    })
    .on('data', function (data, channel, isParent) {
      nodes[name].heard[channel.id] = channel
      say('data', { node: name, source: isParent ? 'parent' : channel.id, data })
    })
}

function channel ({ node: name, to }) {
  const { node, heard } = nodes[name]
  const found = to === 'parent'
    ? node.parent
    // What a child says may come before the node has it among its children.
    : Object.values(node.children).find(c => c.id === to) || heard[to]
  if (!found) throw new Error(name + ' has no neighbour ' + to)
  return found
}

listen({
  root (command) {
    make(command).becomeRoot(command.secret)
    // The node itself does not say when it is registered.
    nodes[command.node].bootstrap.rootSocket.once('connect', function () {
      say('root', { node: command.node })
    })
  },
  join (command) { make(command).join() },
  send (command) { channel(command).send(command.data) },
  raw (command) { channel(command)._socket.send(command.frame) },
  state ({ node: name }) {
    const { node } = nodes[name]
    say('state', {
      node: name,
      id: node.id,
      parent: node.parent !== null,
      children: Object.values(node.children).map(child => child.id),
      candidates: Object.keys(node._candidates)
    })
  },
  close ({ node: name }) {
    nodes[name].node.close()
    nodes[name].bootstrap.close()
  }
})
