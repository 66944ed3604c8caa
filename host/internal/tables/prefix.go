package tables

import (
	"net/netip"
	"strings"
)

// prefixTree finds the keys that are IP prefixes holding an address. Keys that are no prefixes are not in it. It is
// two binary tries by bits; the depth bounds every step, so that a list of a million networks costs no more than a
// list of ten.
type prefixTree struct {
	v4, v6 *prefixNode
}

type prefixNode struct {
	child [2]*prefixNode
	keys  []string // as written in the table: "192.0.2.1" and "192.0.2.1/32" are the same prefix
}

func newPrefixTree() *prefixTree { return &prefixTree{v4: &prefixNode{}, v6: &prefixNode{}} }

// parsePrefix reads an address or a prefix.
func parsePrefix(key string) (netip.Prefix, bool) {
	if !strings.Contains(key, "/") {
		a, err := netip.ParseAddr(key)
		if err != nil {
			return netip.Prefix{}, false
		}
		a = a.Unmap().WithZone("")
		return netip.PrefixFrom(a, a.BitLen()), true
	}
	p, err := netip.ParsePrefix(key)
	return p.Masked(), err == nil
}

func (t *prefixTree) root(a netip.Addr) *prefixNode {
	if a.Is4() {
		return t.v4
	}
	return t.v6
}

func bit(octets []byte, i int) int { return int(octets[i/8]>>(7-i%8)) & 1 }

func (t *prefixTree) insert(key string) {
	p, ok := parsePrefix(key)
	if !ok {
		return
	}
	n, octets := t.root(p.Addr()), p.Addr().AsSlice()
	for i := range p.Bits() {
		b := bit(octets, i)
		if n.child[b] == nil {
			n.child[b] = &prefixNode{}
		}
		n = n.child[b]
	}
	for _, k := range n.keys {
		if k == key {
			return
		}
	}
	n.keys = append(n.keys, key)
}

func (t *prefixTree) remove(key string) {
	p, ok := parsePrefix(key)
	if !ok {
		return
	}
	octets := p.Addr().AsSlice()
	t.root(p.Addr()).remove(octets, 0, p.Bits(), key)
}

// remove takes key out below n and reports whether n holds nothing any more.
func (n *prefixNode) remove(octets []byte, depth, bits int, key string) (empty bool) {
	if depth < bits {
		b := bit(octets, depth)
		if n.child[b] != nil && n.child[b].remove(octets, depth+1, bits, key) {
			n.child[b] = nil
		}
	} else {
		for i, k := range n.keys {
			if k == key {
				n.keys = append(n.keys[:i:i], n.keys[i+1:]...)
				break
			}
		}
	}
	return len(n.keys) == 0 && n.child[0] == nil && n.child[1] == nil
}

// holding lists the keys whose prefixes hold a, the longest first.
func (t *prefixTree) holding(a netip.Addr) (keys []string) {
	if !a.IsValid() {
		return nil
	}
	n, octets := t.root(a), a.AsSlice()
	for i := 0; n != nil; i++ {
		keys = append(keys, n.keys...)
		if i == a.BitLen() {
			break
		}
		n = n.child[bit(octets, i)]
	}
	for i, j := 0, len(keys)-1; i < j; i, j = i+1, j-1 {
		keys[i], keys[j] = keys[j], keys[i]
	}
	return keys
}
