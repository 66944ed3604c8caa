// Package privsep keeps root out of the process that reads from the network.
//
// Started as root with host { user }, the first process stays a small parent: it reads the configuration's files for the
// user and data_dir, which is before anything is read from the network and from files that root alone should be able to
// write, asks no agent, and starts the host as that user. What the host cannot do any more, it asks of the parent over a
// pair of sockets that keeps packets apart: start a process of an agent, signal it, reach the socket it listens at, hear
// of its end, and start another host for a restart. The parent believes the host nothing that would matter: a request has
// no field for a user, folders are judged by open descriptors and given away only where they are the host's own, and
// programs run as an agent's user, with no capability and no way to gain one. A host that was taken over can so
// start programs as users that own nothing but agents' state, and no more.
package privsep
