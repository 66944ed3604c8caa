package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/mime"
)

// consultation of the engines about one message.
type consultation struct {
	objects []*object
	reports []report // one of each engine that was asked, in the order of the configuration
	limit   error    // the message was not taken to pieces to its end
}

// known answers with the result for an object that an engine of that version gave earlier.
type known func(*object, *guarded, version) (answer, bool)

// ask the engines, by the bias.
func (s *Scanner) ask(ctx context.Context, objects []*object, seen known) *consultation {
	c := &consultation{objects: objects}
	one := func(ctx context.Context, g *guarded) report {
		return g.about(ctx, objects, func(o *object, v version) (answer, bool) { return seen(o, g, v) })
	}
	switch s.Bias {
	case "first":
		for _, g := range s.engines {
			c.reports = append(c.reports, one(ctx, g))
			if c.reports[len(c.reports)-1].err == nil {
				break
			}
		}
	case "fastest":
		c.reports = s.race(ctx, one)
	default:
		c.reports = make([]report, len(s.engines))
		var asking sync.WaitGroup
		for i, g := range s.engines {
			asking.Go(func() { c.reports[i] = one(ctx, g) })
		}
		asking.Wait()
	}
	return c
}

// race answers with the first report that is none of failure, or with all.
func (s *Scanner) race(ctx context.Context, one func(context.Context, *guarded) report) (all []report) {
	ctx, cancel := context.WithCancel(ctx)
	var running sync.WaitGroup
	defer running.Wait() // the objects are theirs until they have ended
	defer cancel()
	reports := make(chan report, len(s.engines))
	for _, g := range s.engines {
		running.Go(func() { reports <- one(ctx, g) })
	}
	for range s.engines {
		r := <-reports
		if r.err == nil {
			return []report{r}
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b report) int { return strings.Compare(a.engine.Name, b.engine.Name) })
	return all
}

// hit is malware in an object.
type hit struct {
	object  *object
	malware string
	engines []string // that found it
}

// infected objects: those in which one engine found something, or with bias majority more than half of those that looked.
func (c *consultation) infected(bias string) (hits []hit) {
	for i, o := range c.objects {
		h, looked := hit{object: o}, 0
		for _, r := range c.reports {
			if r.err != nil || !r.answers[i].scanned {
				continue
			}
			looked++
			if name := r.answers[i].malware; name != "" {
				h.engines = append(h.engines, r.engine.Name)
				if h.malware == "" {
					h.malware = name
				}
			}
		}
		if n := len(h.engines); n > 0 && (bias != "majority" || 2*n > looked) {
			hits = append(hits, h)
		}
	}
	return hits
}

// answers is how many engines did.
func (c *consultation) answers() (n int) {
	for _, r := range c.reports {
		if r.err == nil {
			n++
		}
	}
	return n
}

// required number of answers.
func (c *consultation) required(bias string, answers int) int {
	if bias == "any" || bias == "majority" {
		return answers
	}
	return 1
}

// problems of the engines that gave no answer.
func (c *consultation) problems() error {
	var errs []error
	for _, r := range c.reports {
		if r.err != nil {
			errs = append(errs, r.err)
		}
	}
	return &problems{errs}
}

// problems in one line.
type problems struct{ all []error }

// Error implements error.
func (p *problems) Error() string {
	var words []string
	for _, err := range p.all {
		words = append(words, err.Error())
	}
	return strings.Join(words, "; ")
}

// Unwrap lets errors.Is look at all.
func (p *problems) Unwrap() []error { return p.all }

// unscanned says what no engine has looked at. That the message as a whole is too large does not matter where each of its
// parts was looked at.
func (c *consultation) unscanned() string {
	if c.limit != nil {
		return c.limit.Error()
	}
	parts := 0
	for i, o := range c.objects {
		looked := slices.ContainsFunc(c.reports, func(r report) bool { return r.err == nil && r.answers[i].scanned })
		switch {
		case !looked && !o.whole():
			return fmt.Sprintf("%s has %d octets, too many for every engine", o.name, o.size)
		case !o.whole():
			parts++
		case !looked && len(c.objects) == 1:
			return fmt.Sprintf("the message has %d octets, too many for every engine", o.size)
		}
	}
	return ""
}

// engines that answered, with their versions: "clamd ClamAV 1.4.6/27800".
func (c *consultation) engines() string {
	var words []string
	for _, r := range c.reports {
		if r.err == nil {
			words = append(words, strings.TrimSpace(r.engine.Name+" "+r.version))
		}
	}
	return strings.Join(words, ", ")
}

// stripped is a part that a notice stands for.
type stripped struct {
	part          *mime.Part
	name, malware string
}

// strippable parts that hits are in, the outermost of those in each other.
func strippable(hits []hit) (list []stripped) {
	infected := map[*mime.Part]bool{}
	for _, h := range hits {
		for _, p := range h.object.parts {
			if !infected[p] {
				infected[p] = true
				list = append(list, stripped{p, nameOf(p), h.malware})
			}
		}
	}
	return slices.DeleteFunc(list, func(s stripped) bool {
		for p := s.part.Parent; p != nil; p = p.Parent {
			if infected[p] {
				return true
			}
		}
		return false
	})
}

// remainder reports whether the engines find nothing in what is left of a message without these parts.
func (s *Scanner) remainder(ctx context.Context, m *mail, parts []stripped, c *consultation) (clean bool, err error) {
	if parts[0].part.Parent == nil {
		return true, nil // nothing is left of the body
	}
	rest := &object{name: "what is left", open: func() io.Reader { return s.without(m, parts) }}
	if rest.size, err = io.Copy(io.Discard, rest.open()); err != nil {
		return false, err
	}
	nothing := func(*object, *guarded, version) (answer, bool) { return answer{}, false }
	again := s.ask(ctx, []*object{rest}, nothing)
	defer rest.close()
	if again.answers() < again.required(s.Bias, s.Answers) {
		return false, again.problems()
	}
	return len(again.infected(s.Bias)) == 0, nil
}

// without reads the message with notices in the place of parts.
func (s *Scanner) without(m *mail, parts []stripped) io.Reader {
	parts = slices.SortedFunc(slices.Values(parts), func(a, b stripped) int { return int(a.part.Start - b.part.Start) })
	pieces := []io.Reader{bytes.NewReader(m.headers.Block()), strings.NewReader("\r\n")}
	at := int64(0)
	for _, p := range parts {
		pieces = append(pieces, io.NewSectionReader(m.body, at, p.part.Start-at), bytes.NewReader(s.noticeFor(p)))
		at = p.part.End
	}
	return io.MultiReader(append(pieces, io.NewSectionReader(m.body, at, m.body.Size()-at))...)
}

// resultRow remembers what an engine said of a part. Its key is engineKey and the digest of the part.
type resultRow struct {
	Malware string `json:"malware"` // "" clean
}

// Bounds of what is remembered: small parts are scanned faster than they are looked up, and an event may ask for so many rows.
const (
	remembered = 4 << 10 // octets
	maxKeys    = 256
)

// resultKey of a part for an engine of a version.
func resultKey(g *guarded, v string, o *object) string {
	return fmt.Sprintf("%s|%s|%x", g.Name, v, o.sum)
}

// eachKey calls use with each key under which results are remembered.
func (s *Scanner) eachKey(objects []*object, use func(g *guarded, o *object)) {
	if s.CacheFor == 0 {
		return
	}
	n := 0
	for _, o := range objects {
		if o.whole() || o.size < remembered {
			continue
		}
		if n += len(s.engines); n > maxKeys {
			return
		}
		for _, g := range s.engines {
			use(g, o)
		}
	}
}

// wanted keys of results that are worth a lookup.
func (s *Scanner) wanted(ctx context.Context, objects []*object) (keys []string) {
	versions := map[*guarded]string{}
	s.eachKey(objects, func(g *guarded, o *object) {
		if _, asked := versions[g]; !asked {
			versions[g] = g.tells(ctx)
		}
		if v := versions[g]; v != "" {
			keys = append(keys, resultKey(g, v, o))
		}
	})
	return keys
}

// known result that came with the event.
func (s *Scanner) known(m *mail, o *object, g *guarded, v version) (answer, bool) {
	if !m.Needed || v.text == "" || o.whole() || o.size < remembered {
		return answer{}, false
	}
	row, ok := s.results.RowOf(m, resultKey(g, v.text, o))
	return answer{scanned: true, malware: row.Value.Malware, cached: true}, ok
}

// learned results, to be remembered.
func (s *Scanner) learned(c *consultation) (writes []sdk.Write) {
	index := map[*object]int{}
	for i, o := range c.objects {
		index[o] = i
	}
	s.eachKey(c.objects, func(g *guarded, o *object) {
		i := slices.IndexFunc(c.reports, func(r report) bool { return r.engine == g && r.err == nil && r.version != "" })
		if i < 0 {
			return
		}
		if a := c.reports[i].answers[index[o]]; a.scanned && !a.cached {
			row := s.results.Put(resultRow{a.malware}, s.CacheFor)
			writes = append(writes, row.At(resultKey(g, c.reports[i].version, o)))
		}
	})
	return writes
}
