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
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/oschwald/maxminddb-golang/v2"

	"github.com/posternmail/postern/sdk"
)

// geography tells where a client is, by files in MaxMind's format: of countries, of autonomous systems, or of both.
type geography struct {
	paths []string
	open  []atomic.Pointer[maxminddb.Reader] // by path
	read  []fileState
	seen  []fileState
}

// maxDatabase is the size of a file that is taken, in octets: a file is held in memory, so that one that is written over
// cannot end the process as a mapped one would.
const maxDatabase = 512 << 20

// openGeography reads the files. The error comes with the index of the path.
func openGeography(paths []string) (*geography, int, error) {
	g := &geography{paths: paths, open: make([]atomic.Pointer[maxminddb.Reader], len(paths)), read: statesOf(paths)}
	g.seen = g.read
	for i := range paths {
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

// fileState tells one version of a file from another.
type fileState struct {
	modified time.Time
	size     int64
}

func statesOf(paths []string) []fileState {
	states := make([]fileState, len(paths))
	for i, path := range paths {
		if info, err := os.Stat(path); err == nil {
			states[i] = fileState{info.ModTime(), info.Size()}
		}
	}
	return states
}

// lookEvery is how often the files are looked at. A change is read at the second look that finds the same file, so that
// one being written is not read half way.
const lookEvery = 5 * time.Second

// follow the files until stop is called.
func (g *geography) follow(logger hclog.Logger) (stop func()) {
	done := make(chan struct{})
	go func() {
		ticker := time.NewTicker(lookEvery)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				if err := g.look(); err != nil {
					logger.Error("database not read again; the one that was read before stays in use", "error", err)
				}
			}
		}
	}()
	return func() { close(done) }
}

// look at the files once. The error of a broken one is given once.
func (g *geography) look() error {
	states := statesOf(g.paths)
	settled := slices.Equal(states, g.seen)
	g.seen = states
	if !settled {
		return nil
	}
	var errs []error
	for i := range g.paths {
		if states[i] != g.read[i] {
			g.read[i] = states[i]
			errs = append(errs, g.load(i))
		}
	}
	return errors.Join(errs...)
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
