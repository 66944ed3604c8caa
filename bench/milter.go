package main

import (
	"encoding/binary"
	"io"
	"net"
	"os"
)

// serveMilter is the peers' no-op filter: it takes every event of the milter protocol (version 6) and answers
// "continue".
func serveMilter(path string) error {
	l, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o777); err != nil { // Postfix connects as its own user
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go milterSession(c)
	}
}

func milterSession(c net.Conn) {
	defer c.Close()
	var size [4]byte
	for {
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		packet := make([]byte, binary.BigEndian.Uint32(size[:]))
		if _, err := io.ReadFull(c, packet); err != nil || len(packet) == 0 {
			return
		}
		var answer []byte
		switch packet[0] {
		case 'O': // negotiate: version 6, no edits, every event
			answer = []byte{'O', 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 0}
		case 'D', 'A', 'K': // macros, abort, quit-new-connection are not answered
			continue
		case 'Q':
			return
		default:
			answer = []byte{'c'}
		}
		frame := binary.BigEndian.AppendUint32(nil, uint32(len(answer)))
		if _, err := c.Write(append(frame, answer...)); err != nil {
			return
		}
	}
}
