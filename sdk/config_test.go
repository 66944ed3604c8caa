package sdk

import (
	"context"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/agentpb"
)

type common struct {
	Enabled bool `hcl:"enabled,optional" default:"true"`
}

type resolver struct {
	Name string `hcl:"name,label"`
	Port uint16 `hcl:"port,optional" default:"53" min:"1"`
	TLS  *struct {
		CA string `hcl:"ca" format:"path"`
	} `hcl:"tls,block"`
}

type everything struct {
	common
	Name     string             `hcl:"name" one_of:"a b c" doc:"a name" example:"\"a\""`
	Delay    time.Duration      `hcl:"delay,optional" default:"36d" max:"40d"`
	Short    time.Duration      `hcl:"short,optional" default:"10s"`
	Limit    Size               `hcl:"limit,optional" default:"25 MB" min:"1 KB"`
	Ratio    float64            `hcl:"ratio,optional" default:"0.5" max:"1"`
	Level    int                `hcl:"level,optional" default:"5" min:"-1" max:"9"`
	Nets     []netip.Prefix     `hcl:"nets,optional" default:"192.0.2.0/24, 2001:db8::1"`
	Pattern  *regexp.Regexp     `hcl:"pattern,optional"`
	Patterns []*regexp.Regexp   `hcl:"patterns,optional"`
	Boss     address.Mailbox    `hcl:"boss,optional"`
	Secret   string             `hcl:"secret,optional" sensitive:"true"`
	Weights  map[string]float64 `hcl:"weights,optional"`
	Maybe    *int               `hcl:"maybe,optional"`
	Resolver []resolver         `hcl:"resolver,block" doc:"servers to ask"`
	Once     *resolver          `hcl:"once,block"`
	Other    int
}

func TestSchema(t *testing.T) {
	schema, err := typedBuilder[everything, any]{}.schema()
	if err != nil {
		t.Fatal(err)
	}
	attributes := map[string]*agentpb.SchemaAttribute{}
	for _, a := range schema.GetRoot().GetAttributes() {
		attributes[a.GetName()] = a
	}
	for name, want := range map[string][3]string{ // type, format, default
		"enabled":  {`"bool"`, "UNSPECIFIED", "true"},
		"name":     {`"string"`, "UNSPECIFIED", ""},
		"delay":    {`"string"`, "DURATION", `"864h"`},
		"short":    {`"string"`, "DURATION", `"10s"`},
		"limit":    {`"string"`, "SIZE", "26214400"},
		"ratio":    {`"number"`, "UNSPECIFIED", "0.5"},
		"level":    {`"number"`, "INTEGER", "5"},
		"nets":     {`["list","string"]`, "PREFIX", `["192.0.2.0/24","2001:db8::1"]`},
		"pattern":  {`"string"`, "REGEXP", ""},
		"patterns": {`["list","string"]`, "REGEXP", ""},
		"boss":     {`"string"`, "MAILBOX", ""},
		"weights":  {`["map","number"]`, "UNSPECIFIED", ""},
		"maybe":    {`"number"`, "INTEGER", ""},
	} {
		a := attributes[name]
		got := [3]string{a.GetType(), strings.TrimPrefix(a.GetFormat().String(), "FORMAT_"), a.GetDefaultJson()}
		if got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if a := attributes["name"]; !a.GetRequired() || a.GetDoc() != "a name" || !slices.Equal(a.GetOneOf(), []string{"a", "b", "c"}) {
		t.Errorf("name: %v", a)
	}
	if !attributes["secret"].GetSensitive() || len(attributes) != 14 {
		t.Errorf("%d attributes, secret %v", len(attributes), attributes["secret"])
	}
	blocks := schema.GetRoot().GetBlocks()
	if len(blocks) != 2 || blocks[0].GetMax() != 0 || !slices.Equal(blocks[0].GetLabelNames(), []string{"name"}) ||
		blocks[0].GetBlock().GetDoc() != "servers to ask" || blocks[1].GetMax() != 1 || blocks[1].GetMin() != 0 {
		t.Errorf("blocks %v", blocks)
	}
	if inner := blocks[0].GetBlock().GetBlocks()[0]; inner.GetName() != "tls" || inner.GetBlock().GetAttributes()[0].GetFormat() != agentpb.Format_FORMAT_PATH {
		t.Errorf("nested block %v", inner)
	}
}

func TestSchemaRefusesWhatNoConfigurationHolds(t *testing.T) {
	for want, b := range map[string]builder{
		"cannot hold chan int": typedBuilder[struct {
			C chan int `hcl:"c"`
		}, any]{},
		"default": typedBuilder[struct {
			D time.Duration `hcl:"d,optional" default:"5 parsecs"`
		}, any]{},
		"not exported": typedBuilder[struct {
			d int `hcl:"d"`
		}, any]{},
		`hcl:"d,maybe"`: typedBuilder[struct {
			D int `hcl:"d,maybe"`
		}, any]{},
		"is no struct": typedBuilder[int, any]{},
	} {
		if _, err := b.schema(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

func TestDecode(t *testing.T) {
	var got everything
	err := decodeConfig([]byte(`{"name":"b","delay":"1d","limit":1048576,"level":-1,"pattern":"^a","patterns":["b","c"],
		"boss":"Boss@X.example","weights":{"k":1.5},"maybe":7,"enabled":false,
		"resolver":[{"name":"one"},{"name":"two","port":5353,"tls":{"ca":"/ca.pem"}}],"once":{"name":"o"},"secret":null}`), &got)
	if err != nil {
		t.Fatal(err)
	}
	seven := 7
	want := everything{
		Name: "b", Delay: 24 * time.Hour, Short: 10 * time.Second, Limit: MiB, Ratio: 0.5, Level: -1,
		Nets:    []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::1/128")},
		Pattern: regexp.MustCompile("^a"), Patterns: []*regexp.Regexp{regexp.MustCompile("b"), regexp.MustCompile("c")},
		Boss: address.Mailbox{Local: "Boss", Domain: "x.example"}, Weights: map[string]float64{"k": 1.5}, Maybe: &seven,
		Resolver: []resolver{{Name: "one", Port: 53}, {Name: "two", Port: 5353}},
		Once:     &resolver{Name: "o", Port: 53},
	}
	if got.Resolver[1].TLS == nil || got.Resolver[1].TLS.CA != "/ca.pem" {
		t.Errorf("tls %v", got.Resolver[1].TLS)
	}
	got.Resolver[1].TLS = nil
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestDecodeNamesTheirPlace(t *testing.T) {
	for config, want := range map[string]string{
		`{}`:                                                "name: name is required",
		`{"name":"d"}`:                                      `name: "d" is none of: a, b, c`,
		`{"name":"a","delay":"41d"}`:                        "delay: 984h0m0s is more than 40d",
		`{"name":"a","limit":"1 B"}`:                        "limit: 1 is less than 1 KB",
		`{"name":"a","level":10}`:                           "level: 10 is more than 9",
		`{"name":"a","level":1.5}`:                          "level: 1.5 does not fit: want int",
		`{"name":"a","ratio":2}`:                            "ratio: 2 is more than 1",
		`{"name":"a","nets":["192.0.2.1","x"]}`:             `nets[1]: "x" is no network`,
		`{"name":"a","nets":"x"}`:                           "nets: want a list",
		`{"name":"a","pattern":"("}`:                        "pattern: error parsing regexp",
		`{"name":"a","patterns":["("]}`:                     "patterns[0]: error parsing regexp",
		`{"name":"a","boss":"nobody"}`:                      "boss: invalid address",
		`{"name":"a","weights":{"k":"v"}}`:                  `weights["k"]: "v" does not fit`,
		`{"name":"a","nmae":1}`:                             `nmae: there is no attribute or block "nmae"`,
		`{"name":"a","once":[{"name":"x"}]}`:                "once: only one block",
		`{"name":"a","resolver":[{"name":"x","port":0}]}`:   "resolver[0].port: 0 is less than 1",
		`{"name":"a","resolver":[{"name":"x"},{"tls":{}}]}`: "resolver[1].tls.ca: ca is required",
		`[1]`: "no JSON object",
	} {
		err := decodeConfig([]byte(config), new(everything))
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", config, err, want)
		}
	}
}

func TestUnits(t *testing.T) {
	for text, want := range map[string]Size{"0": 0, "25 MB": 25 << 20, "64KiB": 64 << 10, "1.5 gb": 3 << 29, " 7 B ": 7, "-1": -1, "x": -1, "5 XB": -1, "": -1, "1e30": -1} {
		if got, err := ParseSize(text); got != max(want, 0) || (err == nil) != (want >= 0) {
			t.Errorf("size %q: %d, %v", text, got, err)
		}
	}
	for text, want := range map[string]time.Duration{
		"5m": 5 * time.Minute, "36d": 864 * time.Hour, "2w": 336 * time.Hour, "1w1d1h": 193 * time.Hour, "0.5d": 12 * time.Hour,
		"5": -1, "d": -1, "1d x": -1, "": -1, "1e300d": -1,
	} {
		if got, err := ParseDuration(text); got != max(want, 0) || (err == nil) != (want >= 0) {
			t.Errorf("duration %q: %s, %v", text, got, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"name":"a","resolver":[{"name":"x","port":1}],"weights":{"a":1}}`))
	f.Add([]byte(`{"name":["a"],"resolver":{"tls":[]},"delay":5,"limit":"1 TB"}`))
	f.Fuzz(func(t *testing.T, config []byte) {
		decodeConfig(config, new(everything)) // must not panic, whatever it is
	})
}

// built says what the host is told of an agent.
func built[C, A any](t *testing.T, build func(C, *Registrar) (A, error)) (*agentpb.ConfigureResponse, []string) {
	t.Helper()
	def := &definition{info: Info{Name: "test", Version: "1.0.0"}, typed: typedBuilder[C, A]{build}}
	s := newService(def, hclog.NewNullLogger(), newSideSocket(hclog.NewNullLogger()))
	out, err := s.Configure(context.Background(), &agentpb.ConfigureRequest{InstanceName: "label"})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, d := range out.GetDiagnostics() {
		all = append(all, (&diagnosticError{d}).Error())
	}
	return out, all
}

type wrongSignature struct{}

func (*wrongSignature) OnRcpt(*RcptEvent) Verdict { return Continue() }

type misspelled struct{ byRecipient }

func (*misspelled) OnRecipient(context.Context, *RcptEvent) Verdict { return Continue() }

type scheduled struct{}

func (*scheduled) OnSchedule(context.Context, *ScheduleEvent) Verdict { return Continue() }

// The mistakes of an author are found when the agent is configured, with words that help.
func TestMistakesOfAuthors(t *testing.T) {
	type none struct{}
	for name, c := range map[string]struct {
		want string
		got  func() []string
	}{
		"signature": {"see sdk.RcptHandler", func() []string {
			_, d := built(t, func(none, *Registrar) (*wrongSignature, error) { return new(wrongSignature), nil })
			return d
		}},
		"misspelled": {"there is no such event", func() []string {
			_, d := built(t, func(none, *Registrar) (*misspelled, error) { return new(misspelled), nil })
			return d
		}},
		"no handler": {"has no handler", func() []string {
			_, d := built(t, func(none, *Registrar) (*none, error) { return new(none), nil })
			return d
		}},
		"need without handler": {"calls OnMail of the Registrar", func() []string {
			_, d := built(t, func(_ none, r *Registrar) (*byRecipient, error) {
				r.OnMail(Waits)
				return new(byRecipient), nil
			})
			return d
		}},
		"body of a command": {"OnRcpt has no body", func() []string {
			_, d := built(t, func(_ none, r *Registrar) (*byRecipient, error) {
				r.OnRcpt(Body(Whole, Current))
				return new(byRecipient), nil
			})
			return d
		}},
		"schedule": {"needs an interval", func() []string {
			_, d := built(t, func(none, *Registrar) (*scheduled, error) { return new(scheduled), nil })
			return d
		}},
		"panic": {"panicked in New: oops", func() []string {
			_, d := built(t, func(none, *Registrar) (*byRecipient, error) { panic("oops") })
			return d
		}},
		"nothing": {"New returned nothing", func() []string {
			_, d := built(t, func(none, *Registrar) (any, error) { return nil, nil })
			return d
		}},
		"several": {"a: 1; b: 2", func() []string {
			_, d := built(t, func(_ none, r *Registrar) (*byRecipient, error) {
				r.At("a").Errorf("1")
				return nil, r.At("b").Errorf("2")
			})
			return []string{strings.Join(d, "; ")}
		}},
	} {
		if got := c.got(); !slices.ContainsFunc(got, func(d string) bool { return strings.Contains(d, c.want) }) {
			t.Errorf("%s: %q, want %s", name, got, c.want)
		}
	}
}

type manyEvents struct{ byRecipient }

func (*manyEvents) OnConnect(context.Context, *ConnectEvent) Verdict       { return Continue() }
func (*manyEvents) OnEndOfData(context.Context, *DataEvent) Verdict        { return Continue() }
func (*manyEvents) OnDisconnect(context.Context, *DisconnectEvent) Verdict { return Continue() }

func TestSubscriptions(t *testing.T) {
	out, diagnostics := built(t, func(_ struct{}, r *Registrar) (*manyEvents, error) {
		UseTable[struct{}](r, "senders", Key(Sender))
		UseTable[struct{}](r, "clients", Key(ClientNet(24, 64)), OnlyAt(OnConnect), MaxRows(9))
		r.OnEndOfData(ReadsHeaders("Subject"), Body(Prefix(KiB), Original), SkipOver(MiB), Waits, ReadsOwnStamps("a"),
			ReadsStamps("scl"), MayChange(Headers, Stamps("b")), MayKeepCopy)
		r.Skip(OnDisconnect)
		return new(manyEvents), nil
	})
	if len(diagnostics) > 0 || len(out.GetSubscriptions()) != 3 {
		t.Fatalf("%q, %d subscriptions", diagnostics, len(out.GetSubscriptions()))
	}
	connect, rcpt, data := out.Subscriptions[0], out.Subscriptions[1], out.Subscriptions[2]
	if len(connect.Tables) != 1 || connect.Tables[0].Table != "clients" || connect.Tables[0].MaxRows != 9 || !connect.MayChange.Verdict {
		t.Errorf("OnConnect %v", connect)
	}
	if len(rcpt.Tables) != 1 || rcpt.Tables[0].Table != "senders" || !slices.Equal(rcpt.MayChange.Tables, []string{"senders"}) {
		t.Errorf("OnRcpt %v", rcpt)
	}
	if data.Headers.All || !slices.Contains(data.Headers.Names, "Content-Type") || data.Body.PrefixBytes != 1024 ||
		data.Body.SkipOver != 1<<20 || data.View != agentpb.View_VIEW_ORIGINAL || !data.Waits ||
		!slices.Equal(data.ReadsStamps, []string{"label.a", "scl"}) || data.MayChange.Verdict || !data.MayChange.Headers ||
		!slices.Equal(data.MayChange.Stamps, []string{"b"}) || !data.MayChange.KeepCopy {
		t.Errorf("OnEndOfData %v", data)
	}
}
