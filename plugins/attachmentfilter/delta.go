package main

import "io"

// delta undoes the filter of that name: each octet is the difference to the one some places before it.
type delta struct {
	in     io.Reader
	before [256]byte // a ring of as many octets as distance says
	at     int
	places int
}

func newDelta(props []byte, in io.Reader) (io.Reader, error) {
	if len(props) != 1 {
		return nil, err7z
	}
	return &delta{in: in, places: int(props[0]) + 1}, nil
}

// Read implements io.Reader.
func (d *delta) Read(p []byte) (int, error) {
	n, err := d.in.Read(p)
	for i := range n {
		p[i] += d.before[d.at]
		d.before[d.at] = p[i]
		d.at = (d.at + 1) % d.places
	}
	return n, err
}
