package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/oschwald/maxminddb-golang/v2"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/match"
)

// geography tells where a client is, by files in MaxMind's format: of countries, of autonomous systems, or of both.
type geography struct {
	paths []string
	open  []atomic.Pointer[maxminddb.Reader] // by path
	watch []*match.Watch                     // by path
}

// maxDatabase is the size of a file that is taken, in octets: a file is held in memory, so that one that is written over
// cannot end the process as a mapped one would.
const maxDatabase = 512 << 20

// openGeography reads the files. The error comes with the index of the path.
func openGeography(paths []string) (*geography, int, error) {
	g := &geography{paths: paths, open: make([]atomic.Pointer[maxminddb.Reader], len(paths))}
	for i, path := range paths {
		g.watch = append(g.watch, match.NewWatch(path))
		if err := g.load(i); err != nil {
			return nil, i, err
		}
	}
	return g, 0, nil
}

func (g *geography) load(i int) error {
	info, err := os.Stat(g.paths[i])
	if err != nil {
		return err
	}
	if info.Size() > maxDatabase {
		return fmt.Errorf("%s: %d octets, at most %d", g.paths[i], info.Size(), maxDatabase)
	}
	data, err := os.ReadFile(g.paths[i])
	if err != nil {
		return err
	}
	db, err := maxminddb.OpenBytes(data)
	if err != nil {
		return fmt.Errorf("%s is no database in MaxMind's format: %w", g.paths[i], err)
	}
	g.open[i].Store(db)
	return nil
}

// country of an address: the two letters of ISO 3166-1, "" where no file knows it.
func (g *geography) country(ip netip.Addr) string {
	for i := range g.open {
		for _, path := range [][]any{{"country", "iso_code"}, {"country_code"}} {
			var code string
			if g.lookup(i, ip, &code, path) && code != "" {
				return code
			}
		}
	}
	return ""
}

// system that announces an address: the number of the autonomous system, 0 where no file knows it.
func (g *geography) system(ip netip.Addr) uint32 {
	for i := range g.open {
		var number uint32
		if g.lookup(i, ip, &number, []any{"autonomous_system_number"}) && number > 0 {
			return number
		}
		var text string // "AS64496", as some write it
		if g.lookup(i, ip, &text, []any{"asn"}) {
			n, err := strconv.ParseUint(strings.TrimPrefix(text, "AS"), 10, 32)
			if err == nil && n > 0 {
				return uint32(n)
			}
		}
	}
	return 0
}

// lookup reports whether the record of ip could be read into value. What another kind of file holds there is not known.
func (g *geography) lookup(i int, ip netip.Addr, value any, path []any) bool {
	r := g.open[i].Load().Lookup(ip.Unmap())
	return r.Found() && r.DecodePath(value, path...) == nil
}

// Empty reports whether there is no file to follow.
func (g *geography) Empty() bool { return len(g.paths) == 0 }

// Look at the files once, and read those that have changed. Of a broken one the former content stays in use, and the error
// is given once.
func (g *geography) Look() (changed bool, err error) {
	var errs []error
	for i, w := range g.watch {
		if w.Changed() {
			changed = true
			errs = append(errs, g.load(i))
		}
	}
	return changed, errors.Join(errs...)
}

// checkCountries wants two capital letters each (ISO 3166-1).
func checkCountries(r *sdk.Registrar, codes []string, at ...any) error {
	for i, code := range codes {
		if len(code) != 2 || strings.Trim(code, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") != "" {
			return r.At(append(slices.Clone(at), i)...).Errorf("%q is no country: two capital letters of ISO 3166-1, such as \"DE\"", code)
		}
	}
	return nil
}
