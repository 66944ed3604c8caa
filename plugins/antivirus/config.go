package main

import (
	"crypto/ed25519"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/posternmail/postern/sdk"
)

//go:generate go run . --options=README.md

// Config is the agent's configuration. Empty, it scans with the clamd of this machine and refuses what is infected.
type Config struct {
	Engines []Engine `hcl:"engine,block" doc:"A virus scanner, in the order in which they are asked. Without any, the clamd of this machine is looked for, and found too when it starts later."`

	Bias    string `hcl:"bias,optional" default:"any" one_of:"any majority first fastest" doc:"Whose word counts. any: all engines scan, and what one calls infected is. majority: all scan, and what more than half of those that answered call infected is. first: the first engine scans, the next one only when it fails. fastest: all scan, and the first to be through decides."`
	Answers int    `hcl:"answers,optional" default:"1" min:"1" max:"16" doc:"How many engines have to answer, with bias any or majority; fewer is as if none had."`

	External string `hcl:"external_action,optional" default:"reject" one_of:"reject delete quarantine strip" doc:"What happens to infected messages from strangers."`
	Outbound string `hcl:"outbound_action,optional" default:"reject" one_of:"reject delete quarantine strip" doc:"What happens to infected messages from inside to elsewhere."`
	Internal string `hcl:"internal_action,optional" default:"reject" one_of:"reject delete quarantine strip" doc:"What happens to infected messages from inside to accepted domains, and to those that this server made itself."`

	OnNoEngine   string `hcl:"on_no_engine,optional" default:"pass" one_of:"pass undetermined quarantine" doc:"What happens to messages when no engine is configured and none has been found on this machine in the last week. pass: they go on, stamped unscanned. undetermined: on_failure of the agent block decides."`
	OnEngineDown string `hcl:"on_engine_down,optional" default:"undetermined" one_of:"pass undetermined quarantine" doc:"What happens to messages when fewer engines answered than have to. undetermined: on_failure of the agent block decides, which defers if it says nothing else."`
	OverLimit    string `hcl:"over_limit,optional" default:"reject" one_of:"pass reject quarantine" doc:"What happens to messages with a part that is too large for every engine, or with more parts than max_parts, deeper than max_depth, or unpacked larger than max_unpacked."`

	Response          string `hcl:"response,optional" default:"Message rejected because it contains malware" doc:"Text of a refusal of what is infected, up to 240 characters."`
	OverLimitResponse string `hcl:"over_limit_response,optional" default:"Message rejected because it is too large or too complex to be scanned" doc:"Text of a refusal by over_limit, up to 240 characters."`
	Notice            string `hcl:"notice,optional" default:"The attachment {name} was removed by the mail server: it contains malware ({malware})." doc:"Text that stands in the place of a part that was stripped. {name} is its name, {malware} what was found."`

	MaxParts    int      `hcl:"max_parts,optional" default:"1000" min:"10" max:"10000" doc:"MIME parts of a message."`
	MaxDepth    int      `hcl:"max_depth,optional" default:"20" min:"2" max:"50" doc:"MIME parts and messages in each other."`
	MaxUnpacked sdk.Size `hcl:"max_unpacked,optional" default:"200MiB" min:"1MiB" max:"4GiB" doc:"What the parts of a message, decoded in every way that a reader might, have together."`

	CacheFor   time.Duration `hcl:"cache_for,optional" default:"24h" min:"0s" max:"30d" doc:"How long the result for a part counts for equal parts of other messages while the version of the engine is the same; 0s: never."`
	CheckEvery time.Duration `hcl:"check_every,optional" default:"1m" min:"1s" max:"1d" doc:"How often each engine is asked for its version and the age of its signatures, without mail too."`

	Keys         []StampKey    `hcl:"stamp_key,block" doc:"A key for the stamp by which own servers tell each other that a message was scanned. The first one that can sign is signed with, all are believed."`
	StampMaxAge  time.Duration `hcl:"stamp_max_age,optional" default:"4h" min:"1m" max:"30d" doc:"Older stamps of other servers are not believed: their engines may have learned since."`
	StampTraffic []string      `hcl:"stamp_traffic,optional" default:"external,internal" one_of:"external outbound internal" doc:"Which mail is given a stamp. outbound only where the next hop is an own server too: it tells which engines there are. Outbound mail that is given none loses the one it came with."`
}

// Engine is one virus scanner: one of its blocks says which kind.
type Engine struct {
	Name           string        `hcl:"name,label"`
	Clamd          *Clamd        `hcl:"clamd,block" doc:"ClamAV's daemon."`
	ICAP           *ICAP         `hcl:"icap,block" doc:"A server that speaks ICAP (RFC 3507)."`
	Command        *Command      `hcl:"command,block" doc:"A program that is started for each part."`
	Timeout        time.Duration `hcl:"timeout,optional" default:"30s" min:"100ms" max:"1h" doc:"For one message, within the time that the host gives the event."`
	MaxSize        sdk.Size      `hcl:"max_size,optional" default:"25MiB" min:"1KiB" max:"4GiB" doc:"Larger parts are not given to the engine. No more than what it really looks at: clamd says nothing of files over its MaxFileSize, which is 25 MB in Debian."`
	MaxConnections int           `hcl:"max_connections,optional" default:"8" min:"1" max:"256" doc:"Parts that it scans at the same time, for each process of the agent; others wait."`
	StaleAfter     time.Duration `hcl:"stale_after,optional" default:"3d" min:"0s" max:"365d" doc:"Signatures older than this raise the alarm in postern status; 0s: never. An engine that does not tell their age is judged by how long its version is the same."`
	Update         []string      `hcl:"update,optional" doc:"Command that updates the signatures, where nothing else does." example:"[\"freshclam\", \"--quiet\"]"`
	UpdateEvery    time.Duration `hcl:"update_every,optional" default:"1h" min:"1m" max:"30d" doc:"How often it is run."`
}

// Clamd is ClamAV's daemon.
type Clamd struct {
	Address  string `hcl:"address,optional" doc:"unix:/path of its socket, or host:port. Left out: the usual places on this machine." example:"\"unix:/run/clamav/clamd.ctl\""`
	Transfer string `hcl:"transfer,optional" default:"auto" one_of:"auto fildes instream" doc:"fildes hands over a descriptor, which no size limit of the stream bounds (Unix socket only); instream sends the octets. auto takes the first that works."`
}

// ICAP is a server that speaks ICAP.
type ICAP struct {
	URL     string   `hcl:"url" doc:"icap://host:port/service, or icaps:// with TLS." example:"\"icap://127.0.0.1:1344/avscan\""`
	Method  string   `hcl:"method,optional" default:"respmod" one_of:"respmod reqmod" doc:"Whether a part is shown as what a web server answered or as what a browser sends."`
	Preview sdk.Size `hcl:"preview,optional" default:"4KiB" min:"0" max:"1MiB" doc:"How much is sent at first at most; the server may ask for less."`
}

// Command is a program that scans.
type Command struct {
	Run      []string       `hcl:"run" doc:"The program and its arguments. It reads the part from standard input, or from the file that {file} stands for." example:"[\"clamscan\", \"--no-summary\", \"{file}\"]"`
	Clean    []int          `hcl:"clean,optional" default:"0" doc:"Exit codes that mean clean."`
	Infected []int          `hcl:"infected,optional" default:"1" doc:"Exit codes that mean infected. Any other one is a failure."`
	Name     *regexp.Regexp `hcl:"name,optional" default:": (.+) FOUND" doc:"Finds the name of the malware in the output: its first group, or all of it without one."`
	Version  []string       `hcl:"version,optional" doc:"Program that prints the version of the engine and its signatures. Without it results are not cached." example:"[\"clamscan\", \"--version\"]"`
}

// StampKey signs or verifies stamps.
type StampKey struct {
	Name       string `hcl:"name,label"`
	Secret     string `hcl:"secret,optional" sensitive:"true" doc:"Shared by all own servers (HMAC-SHA256), 16 characters or more."`
	PrivateKey string `hcl:"private_key,optional" format:"path" doc:"File with an Ed25519 key (PKCS #8, PEM) of this server."`
	PublicKey  string `hcl:"public_key,optional" doc:"Ed25519 key of another server: 32 octets in base64."`
}

// Bounds of texts.
const (
	maxResponse = 240
	maxNotice   = 2000
	minSecret   = 16
)

// New checks cfg. It is called for every new configuration.
func New(cfg Config, r *sdk.Registrar) (*Scanner, error) {
	s := &Scanner{Config: cfg, host: r.Host().Name, health: r.Health()}
	errs := []error{
		checkResponse(r.At("response"), cfg.Response), checkResponse(r.At("over_limit_response"), cfg.OverLimitResponse),
		s.readEngines(r), s.readKeys(r),
	}
	if len(cfg.Notice) > maxNotice {
		errs = append(errs, r.At("notice").Errorf("text of %d octets, at most %d", len(cfg.Notice), maxNotice))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	s.subscribe(r)
	return s, nil
}

// checkResponse: one line of printable ASCII (RFC 5321 section 4.2).
func checkResponse(place sdk.Place, text string) error {
	if len(text) > maxResponse {
		return place.Errorf("text of %d characters, at most %d", len(text), maxResponse)
	}
	if strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r > '~' }) {
		return place.Errorf("a reply is one line of ASCII")
	}
	return nil
}

// foundName is the engine that stands for the clamd of this machine when no engine is configured.
const foundName = "clamd"

var engineName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,31}$`)

func (s *Scanner) readEngines(r *sdk.Registrar) error {
	if len(s.Engines) == 0 {
		e := Engine{Name: foundName, Clamd: &Clamd{Transfer: "auto"}, Timeout: 30 * time.Second, MaxSize: 25 * sdk.MiB,
			MaxConnections: 8, StaleAfter: 3 * 24 * time.Hour}
		s.found = true
		if s.Answers > 1 {
			return r.At("answers").Errorf("without engine blocks there is one engine, which can give no %d answers", s.Answers)
		}
		s.engines = []*guarded{guard(e, newClamd(*e.Clamd, e), r)}
		return nil
	}
	seen := map[string]bool{}
	var errs []error
	for i, e := range s.Engines {
		switch {
		case !engineName.MatchString(e.Name):
			errs = append(errs, r.At("engine", i).Errorf("%q is no name: up to 32 small letters, digits, dots and hyphens", e.Name))
		case seen[e.Name]:
			errs = append(errs, r.At("engine", i).Errorf("a second engine %q", e.Name))
		}
		seen[e.Name] = true
		scanner, err := newEngine(r, e, i)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		s.engines = append(s.engines, guard(e, scanner, r))
	}
	if s.Answers > len(s.Engines) {
		errs = append(errs, r.At("answers").Errorf("%d engines can give no %d answers", len(s.Engines), s.Answers))
	}
	return errors.Join(errs...)
}

// newEngine makes the client of the one kind that the block is of.
func newEngine(r *sdk.Registrar, e Engine, i int) (engine, error) {
	kinds := 0
	for _, given := range []bool{e.Clamd != nil, e.ICAP != nil, e.Command != nil} {
		if given {
			kinds++
		}
	}
	switch {
	case kinds != 1:
		return nil, r.At("engine", i).Errorf("engine %q needs exactly one of the blocks clamd, icap and command", e.Name)
	case e.Clamd != nil:
		if err := checkAddress(*e.Clamd); err != nil {
			return nil, r.At("engine", i, "clamd", "address").Error(err)
		}
		return newClamd(*e.Clamd, e), nil
	case e.ICAP != nil:
		client, err := newICAP(*e.ICAP, e)
		if err != nil {
			return nil, r.At("engine", i, "icap", "url").Error(err)
		}
		return client, nil
	}
	if len(e.Command.Run) == 0 || e.Command.Run[0] == "" {
		return nil, r.At("engine", i, "command", "run").Errorf("names no program")
	}
	return &command{Command: *e.Command}, nil
}

func (s *Scanner) readKeys(r *sdk.Registrar) error {
	var errs []error
	for i, k := range s.Keys {
		key, err := newKey(k)
		switch {
		case err != nil:
			errs = append(errs, r.At("stamp_key", i).Error(err))
		case slices.ContainsFunc(s.keys, func(other *stampKey) bool { return other.name == key.name }):
			errs = append(errs, r.At("stamp_key", i).Errorf("a second key %q", key.name))
		default:
			s.keys = append(s.keys, key)
		}
	}
	return errors.Join(errs...)
}

// newKey reads what a block names.
func newKey(k StampKey) (*stampKey, error) {
	if !engineName.MatchString(k.Name) {
		return nil, fmt.Errorf("%q is no name: up to 32 small letters, digits, dots and hyphens", k.Name)
	}
	given := 0
	for _, text := range []string{k.Secret, k.PrivateKey, k.PublicKey} {
		if text != "" {
			given++
		}
	}
	switch {
	case given != 1:
		return nil, fmt.Errorf("key %q needs one of secret, private_key and public_key", k.Name)
	case k.Secret != "":
		if len(k.Secret) < minSecret {
			return nil, fmt.Errorf("the secret of key %q has %d characters, %d are the least", k.Name, len(k.Secret), minSecret)
		}
		return &stampKey{name: k.Name, secret: []byte(k.Secret)}, nil
	case k.PublicKey != "":
		public, err := base64.StdEncoding.DecodeString(k.PublicKey)
		if err != nil || len(public) != ed25519.PublicKeySize {
			return nil, fmt.Errorf("the public key %q is not %d octets in base64", k.Name, ed25519.PublicKeySize)
		}
		return &stampKey{name: k.Name, public: public}, nil
	}
	private, err := readPrivateKey(k.PrivateKey)
	if err != nil {
		return nil, fmt.Errorf("key %q: %w", k.Name, err)
	}
	return &stampKey{name: k.Name, private: private, public: private.Public().(ed25519.PublicKey)}, nil
}

func readPrivateKey(path string) (ed25519.PrivateKey, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s holds no PEM block", path)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	private, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s holds no Ed25519 key", path)
	}
	return private, nil
}
