// Package handover is what a host needs to be replaced by a new process without refusing a connection or losing what
// it has promised.
//
// The running host, the owner, starts the new process and talks to it over a Channel: it hands the listening sockets
// and the lock of the data directory over and, once the new process has loaded its configuration, started its agents
// and says that it is ready, closes the store, the tables and the ledger, which only one process can have open, and
// says that they are the other's now. Until the new process answers that it runs, the owner can take everything back.
// Then the old host is a drainer: it goes on with the sessions it has. What it accepts, the rows it writes and its
// lines for the ledger go as files into a folder of its own below incoming/, where whoever is the owner picks them up.
// Files, since they are there when the drainer dies, when the owner dies, and when nobody is the owner for a while.
//
// Why not a library: tableflip (Cloudflare, the best kept one) hands descriptors over well, but knows one moment only,
// the new process's Ready, after which the old one exits ("no old code keeps running"). Here the old one must give
// something up in between that the new one needs to get ready, must take it back when that fails, and lives on for its
// sessions. What would be left of the library is passing descriptors, which is Listeners and Channel. For systemd's
// socket activation (LISTEN_FDS) and notifications (sd_notify) the protocol is a few lines each; go-systemd would bring
// a dependency for them.
package handover
