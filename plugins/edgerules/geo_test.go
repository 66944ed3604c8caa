package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/agenttest"
)

// database in MaxMind's format, of records by network.
func database(t testing.TB, records map[string]mmdbtype.Map) string {
	t.Helper()
	tree, err := mmdbwriter.New(mmdbwriter.Options{DatabaseType: "Test", RecordSize: 24, IncludeReservedNetworks: true})
	if err != nil {
		t.Fatal(err)
	}
	for network, record := range records {
		_, n, err := net.ParseCIDR(network)
		if err != nil {
			t.Fatal(err)
		}
		if err := tree.Insert(n, record); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(t.TempDir(), "test.mmdb")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tree.WriteTo(f); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func country(code string) mmdbtype.Map {
	return mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String(code)}}
}

func system(n int) mmdbtype.Map {
	return mmdbtype.Map{"autonomous_system_number": mmdbtype.Uint32(n)}
}

// databases of countries and of systems, as one option.
func databases(t testing.TB) string {
	countries := database(t, map[string]mmdbtype.Map{"192.0.2.0/25": country("DE"), "2001:db8::/32": country("AT"), "198.51.100.0/24": {"country_code": mmdbtype.String("CH")}})
	systems := database(t, map[string]mmdbtype.Map{"192.0.2.0/24": system(64496), "198.51.100.0/24": {"asn": mmdbtype.String("AS64497")}})
	return fmt.Sprintf("databases = [%q, %q]\n", countries, systems)
}

// Where a client is decides by its country and its autonomous system.
func TestPlaces(t *testing.T) {
	given := databases(t)
	for condition, clients := range map[string]map[string]bool{
		`countries = ["DE", "AT"]`:                {"192.0.2.1": true, "192.0.2.200": false, "2001:db8::1": true, "198.51.100.1": false, "203.0.113.1": false},
		`countries = ["CH"]`:                      {"198.51.100.1": true, "192.0.2.1": false},
		`systems = [64496]`:                       {"192.0.2.1": true, "192.0.2.200": true, "198.51.100.1": false, "2001:db8::1": false},
		`systems = [64497]`:                       {"198.51.100.1": true},
		"countries = [\"DE\"]\nsystems = [64496]": {"192.0.2.1": true, "192.0.2.200": false},
	} {
		a := agenttest.Start(t, New, given+"rule \"place\" {\nwhen {\n"+condition+"\n}\nreject {}\n}", withInfo)
		for client, holds := range clients {
			o := sent(a.From(client), "bounce@x.example", "r@y.example")
			if holds {
				o.Want(550, "5.7.1").WantReason("reject")
			} else {
				o.WantContinue()
			}
		}
	}
}

func TestPlacesMistakes(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "broken.mmdb")
	if err := os.WriteFile(broken, []byte("nothing of the kind"), 0o600); err != nil {
		t.Fatal(err)
	}
	rule := func(condition string) string { return "rule \"a\" {\nwhen {\n" + condition + "\n}\nstop = true\n}" }
	for name, c := range map[string]struct{ config, want string }{
		"no database": {rule(`countries = ["DE"]`), "rule[0].when: countries and systems want a file in databases"},
		"no country":  {databases(t) + rule(`countries = ["Germany"]`), `rule[0].when.countries[0]: "Germany" is no country`},
		"broken":      {fmt.Sprintf("databases = [%q]\n", broken) + rule(`has_attachment = true`), "databases[0]: " + broken + " is no database in MaxMind's format"},
		"missing":     {"databases = [\"/nonexistent.mmdb\"]\n" + rule(`has_attachment = true`), "databases[0]: "},
	} {
		t.Run(name, func(t *testing.T) {
			if got := agenttest.Diagnostics(t, New, c.config, withInfo); len(got) != 1 || !strings.HasPrefix(got[0], c.want) {
				t.Errorf("%q, want %q", got, c.want)
			}
		})
	}
}

// A database that is replaced is used from then on; a broken one is not.
func TestPlacesChange(t *testing.T) {
	path := database(t, map[string]mmdbtype.Map{"192.0.2.0/24": country("DE")})
	g, _, err := openGeography([]string{path})
	if err != nil {
		t.Fatal(err)
	}
	ip := netip.MustParseAddr("192.0.2.1")
	replace := func(data []byte) {
		t.Helper()
		if err := os.WriteFile(path+".new", data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	replace([]byte("half of it"))
	if _, err := g.Look(); err != nil {
		t.Error(err) // not settled
	}
	if _, err := g.Look(); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
	if _, err := g.Look(); err != nil || g.country(ip) != "DE" {
		t.Errorf("%v %s", err, g.country(ip))
	}
	fresh, err := os.ReadFile(database(t, map[string]mmdbtype.Map{"192.0.2.0/24": country("AT")}))
	if err != nil {
		t.Fatal(err)
	}
	replace(fresh)
	if changed, err := g.Look(); changed || err != nil {
		t.Errorf("half-way: %v %v", changed, err)
	}
	if changed, err := g.Look(); !changed || err != nil {
		t.Errorf("a new database: %v %v", changed, err)
	}
	if got := g.country(netip.MustParseAddr("::ffff:192.0.2.1")); got != "AT" {
		t.Errorf("it is in %s", got)
	}
}

// The command tells where the client is.
func TestTestCommandPlace(t *testing.T) {
	path := database(t, map[string]mmdbtype.Map{"192.0.2.0/24": country("DE")})
	a, err := New(Config{Databases: []string{path}, Rules: []Rule{{Name: "place", When: &Conditions{Countries: []string{"DE"}}, Actions: Actions{Stop: true}}}}, new(sdk.Registrar))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(a.Close)
	f, err := readArguments(context.Background(), &sdk.Invocation{Args: []string{"--ip", "192.0.2.9", "-"}, In: strings.NewReader(message), Err: io.Discard})
	if err != nil {
		t.Fatal(err)
	}
	f.geo = a.geo
	o, err := a.run(f)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	a.tell(&out, f, o)
	if want := "rule \"place\": matches\n    countries: 192.0.2.9 in DE\n"; !strings.HasPrefix(out.String(), want) {
		t.Errorf("got %s", out.String())
	}
}

// Whatever a database holds, an address is looked up without harm.
func FuzzDatabase(f *testing.F) {
	for _, records := range []map[string]mmdbtype.Map{{"192.0.2.0/24": country("DE")}, {"192.0.2.0/24": system(1)}, {"192.0.2.0/24": {"country": mmdbtype.String("x")}}} {
		data, err := os.ReadFile(database(f, records))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	path := filepath.Join(f.TempDir(), "fuzz.mmdb")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		g, _, err := openGeography([]string{path})
		if err != nil {
			return
		}
		g.country(netip.MustParseAddr("192.0.2.1"))
		g.system(netip.MustParseAddr("2001:db8::1"))
	})
}
