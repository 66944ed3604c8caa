package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"github.com/posternmail/postern/sdk"
	"github.com/posternmail/postern/sdk/address"
	"github.com/posternmail/postern/sdk/mime"
)

// test is the command: it runs the rules of the configuration on a message file and says which matched, and why.
func test(ctx context.Context, c *sdk.Invocation) error {
	var cfg Config
	if err := c.Config(&cfg); err != nil {
		return err
	}
	a, err := New(cfg, new(sdk.Registrar))
	if err != nil {
		return err
	}
	f, err := readArguments(ctx, c)
	if err != nil {
		return err
	}
	f.geo = a.geo
	out, err := a.run(f)
	if err != nil {
		return err
	}
	a.tell(c.Out, f, out)
	return nil
}

// arguments of the command.
type arguments struct {
	from   string
	to     list
	client string
	inside bool
	stamps list
}

// list is an argument that may be repeated.
type list []string

func (l *list) String() string { return strings.Join(*l, ",") }

// Set implements flag.Value.
func (l *list) Set(s string) error {
	*l = append(*l, s)
	return nil
}

func readArguments(ctx context.Context, c *sdk.Invocation) (*facts, error) {
	var args arguments
	set := flag.NewFlagSet("test", flag.ContinueOnError)
	set.SetOutput(c.Err)
	set.StringVar(&args.from, "from", "", "envelope `sender`; empty: null")
	set.Var(&args.to, "to", "`recipient`; may be repeated")
	set.StringVar(&args.client, "ip", "192.0.2.1", "`address` of the client")
	set.BoolVar(&args.inside, "inside", false, "the client has authenticated")
	set.Var(&args.stamps, "stamp", "`name=value` of a stamp that an earlier agent left; may be repeated")
	if err := set.Parse(c.Args); err != nil {
		return nil, err
	}
	if set.NArg() != 1 {
		return nil, errors.New("name one message file, or - for standard input")
	}
	message, err := readMessage(c, set.Arg(0))
	if err != nil {
		return nil, err
	}
	return args.facts(ctx, message)
}

func readMessage(c *sdk.Invocation, path string) ([]byte, error) {
	if path == "-" {
		return io.ReadAll(c.In)
	}
	return os.ReadFile(path)
}

func (args *arguments) facts(ctx context.Context, message []byte) (*facts, error) {
	message = bytes.ReplaceAll(bytes.ReplaceAll(message, []byte("\r\n"), []byte("\n")), []byte("\n"), []byte("\r\n"))
	block, body, _ := bytes.Cut(message, []byte("\r\n\r\n"))
	block = append(bytes.Clone(block), "\r\n"...)
	h := mime.ParseHeader(block)
	f := &facts{
		inside: args.inside, subject: h.Decoded("Subject"), size: int64(len(message)),
		load: func() (*content, error) { return readContent(ctx, block, bytes.NewReader(body)) },
	}
	f.header = func(name string) (texts []string) {
		for _, text := range h.All(name) {
			texts = append(texts, mime.DecodeWords(text))
		}
		return texts
	}
	f.stamp = func(name string) (string, bool) {
		for _, s := range args.stamps {
			if key, value, _ := strings.Cut(s, "="); key == name {
				return value, true
			}
		}
		return "", false
	}
	if len(args.to) == 0 {
		args.to = list{"postmaster"}
	}
	return f, args.envelope(f, h)
}

func (args *arguments) envelope(f *facts, h mime.Header) error {
	var err error
	if f.client, err = netip.ParseAddr(args.client); err != nil {
		return err
	}
	sender, err := address.Parse(args.from)
	if err != nil {
		return fmt.Errorf("sender: %w", err)
	}
	f.from = []address.Mailbox{sender}
	if from, _ := h.Addresses("From"); len(from) > 0 {
		if m, err := address.Parse(from[0].Address); err == nil {
			f.from = append(f.from, m)
		}
	}
	for _, to := range args.to {
		m, err := address.Parse(to)
		if err != nil {
			return fmt.Errorf("recipient: %w", err)
		}
		f.recipients = append(f.recipients, m)
	}
	return nil
}

// tell which rules matched, and what becomes of each recipient.
func (a *Rules) tell(w io.Writer, f *facts, out outcome) {
	for n, r := range a.rules {
		switch {
		case n >= len(out.hits):
			fmt.Fprintf(w, "rule %q: not looked at, the rules had ended\n", r.Name)
		case out.hits[n].matched:
			fmt.Fprintf(w, "rule %q: matches\n", r.Name)
			for _, why := range out.hits[n].why {
				fmt.Fprintf(w, "    %s\n", why)
			}
		default:
			fmt.Fprintf(w, "rule %q: does not match: %s\n", r.Name, strings.Join(out.hits[n].why, "; "))
		}
	}
	for i, m := range f.recipients {
		var did []string
		for _, n := range out.rules[i] {
			did = append(did, a.rules[n].Name+": "+a.rules[n].describe())
		}
		if len(did) == 0 {
			did = []string{"no rule acts"}
		}
		fmt.Fprintf(w, "recipient %s: %s\n", m, strings.Join(did, "; "))
	}
}

// describe the actions in a few words.
func (r *rule) describe() string {
	var all []string
	say := func(given bool, format string, values ...any) {
		if given {
			all = append(all, fmt.Sprintf(format, values...))
		}
	}
	say(len(r.AddTo) > 0, "add_recipients %v", r.AddTo)
	say(len(r.CopyTo) > 0, "copy_to %v", r.CopyTo)
	say(len(r.BlindCopyTo) > 0, "blind_copy_to %v", r.BlindCopyTo)
	say(r.PrependSubject != "", "prepend_subject %q", r.PrependSubject)
	say(len(r.SetHeaders) > 0, "set_headers")
	say(len(r.RemoveHeaders) > 0, "remove_headers %v", r.RemoveHeaders)
	if r.SetSCL != nil {
		say(true, "set_scl %d", *r.SetSCL)
	}
	say(r.Log != "", "log")
	if r.Reject != nil {
		say(true, "reject %d %s %s", r.Reject.Code, r.Reject.Enhanced, r.Reject.Text)
	}
	say(r.Disconnect, "disconnect")
	say(r.Delete, "delete")
	say(r.Quarantine, "quarantine")
	say(len(r.RedirectTo) > 0, "redirect_to %v", r.RedirectTo)
	say(r.Stop, "stop")
	return strings.Join(all, ", ")
}
