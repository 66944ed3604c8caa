package feed

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"aead.dev/minisign"

	"github.com/posternmail/postern/sdk"
)

// Command is the subcommand `feed` of an agent, for those who publish bundles (keygen, pack, verify) and those who use them
// (status, rollback, reset). sources finds the blocks in the configuration. pack and verify have build judge the bundle, so
// that what the agent would refuse is not published.
func Command[C, T any](sources func(C) []Source, build Build[T]) sdk.Command {
	judge := func(b *Bundle) error { _, err := build(b); return err }
	return sdk.Command{
		Name: "feed", Summary: "signed bundles: keygen, pack, verify; status, rollback, reset",
		Run: func(_ context.Context, c *sdk.Invocation) error {
			if len(c.Args) == 0 {
				return errors.New(usage)
			}
			w := work{c: c, args: c.Args[1:], judge: judge, sources: func() ([]Source, error) {
				var cfg C
				err := c.Config(&cfg)
				return sources(cfg), err
			}}
			return w.run(c.Args[0])
		},
	}
}

const usage = `what of
  keygen NAME                             makes NAME.key, which signs, and NAME.pub, which users of the feed configure
  pack --name FEED [--key FILE] [--out DIR] [--serial N] [--expires TIME] [--comment TEXT] KIND FILE...
  verify --key PUBLIC FILE.tar.gz         says what is in a bundle and whether this agent would take it
  status                                  the feeds of the configuration
  rollback FEED                           back to the bundle before; the one in use is not taken again
  reset FEED                              takes what the source has, even if its serial is older`

// work is one call of the command.
type work struct {
	c       *sdk.Invocation
	args    []string
	judge   func(*Bundle) error
	sources func() ([]Source, error)
}

func (w work) run(name string) error {
	switch name {
	case "keygen":
		return w.keygen()
	case "pack":
		return w.pack()
	case "verify":
		return w.verify()
	case "status":
		return w.status()
	case "rollback":
		return w.change(rollback)
	case "reset":
		return w.change(reset)
	}
	return fmt.Errorf("there is no %q: %s", name, usage)
}

// keygen makes a pair of keys. The secret one has no password: minisign -C gives it one, and then minisign -S signs.
func (w work) keygen() error {
	if len(w.args) != 1 {
		return errors.New("keygen NAME: the keys become NAME.key and NAME.pub")
	}
	public, secret, err := minisign.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	name := w.args[0]
	publicText, err := public.MarshalText()
	if err != nil {
		return err
	}
	secretText, err := secret.MarshalText()
	if err != nil {
		return err
	}
	if err := create(name+".key", append(secretText, '\n'), 0o600); err != nil {
		return err
	}
	if err := create(name+".pub", append(publicText, '\n'), 0o644); err != nil {
		return err
	}
	_, err = fmt.Fprintln(w.c.Out, public)
	return err
}

// create a file that is not there yet.
func create(path string, content []byte, mode os.FileMode) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	return errors.Join(err, f.Sync(), f.Close())
}

// packing is what pack is told.
type packing struct {
	key, out string
	manifest Manifest
}

func (w work) packing() (p packing, kinds []string, err error) {
	f := flag.NewFlagSet("feed pack", flag.ContinueOnError)
	f.SetOutput(w.c.Err)
	now := time.Now().UTC().Truncate(time.Second)
	p.manifest.Created = now
	var expires string
	f.StringVar(&p.manifest.Name, "name", "", "`FEED`: the label of the block that users give it")
	f.StringVar(&p.key, "key", "", "`FILE` of the secret key; without one nothing is signed")
	f.StringVar(&p.out, "out", ".", "`DIR` for the bundle")
	f.Uint64Var(&p.manifest.Serial, "serial", uint64(now.Unix()), "`NUMBER` above that of all bundles before")
	f.StringVar(&p.manifest.Comment, "comment", "", "`TEXT` for people")
	f.StringVar(&expires, "expires", "", "`TIME` from now on (30d) after which the bundle counts as old")
	if err := f.Parse(w.args); err != nil {
		return p, nil, err
	}
	if expires != "" {
		after, err := sdk.ParseDuration(expires)
		if err != nil {
			return p, nil, fmt.Errorf("--expires: %w", err)
		}
		p.manifest.Expires = now.Add(after)
	}
	kinds = f.Args()
	if len(kinds) == 0 || len(kinds)%2 != 0 {
		return p, nil, errors.New("name each file behind its kind: ip-block blocked.txt")
	}
	return p, kinds, nil
}

// pack files into a bundle, sign it, and put both where a source is looked for.
func (w work) pack() error {
	p, kinds, err := w.packing()
	if err != nil {
		return err
	}
	var files []Content
	for i := 0; i < len(kinds); i += 2 {
		octets, err := os.ReadFile(kinds[i+1])
		if err != nil {
			return err
		}
		files = append(files, Content{filepath.Base(kinds[i+1]), kinds[i], octets})
	}
	archive, err := Pack(p.manifest, files)
	if err != nil {
		return err
	}
	if err := w.judged(archive); err != nil {
		return err
	}
	path := filepath.Join(p.out, archiveName(p.manifest.Name))
	if p.key == "" {
		fmt.Fprintf(w.c.Out, "serial %d: %s, to be signed with: minisign -Sm %[2]s\n", p.manifest.Serial, path)
		return replace(path, archive)
	}
	signature, err := signBy(p.key, archive, p.manifest)
	if err != nil {
		return err
	}
	if err := errors.Join(replace(path, archive), replace(path+signatureSuffix, signature)); err != nil {
		return err
	}
	_, err = fmt.Fprintf(w.c.Out, "serial %d: %s and %[2]s%s\n", p.manifest.Serial, path, signatureSuffix)
	return err
}

func (w work) judged(archive []byte) error {
	b, err := unpack(archive, int64(len(archive))*1000)
	if err == nil {
		err = w.judge(b)
	}
	if err != nil {
		return fmt.Errorf("users would refuse this bundle: %w", err)
	}
	return nil
}

func signBy(path string, archive []byte, m Manifest) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if minisign.IsEncrypted(text) {
		return nil, fmt.Errorf("%s has a password: pack without --key, then sign with minisign -S", path)
	}
	var key minisign.PrivateKey
	if err := key.UnmarshalText(trimmed(text)); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return Sign(archive, key, m)
}

func trimmed(text []byte) []byte { return []byte(strings.TrimSpace(string(text))) }

// verify a bundle as an agent would.
func (w work) verify() error {
	f := flag.NewFlagSet("feed verify", flag.ContinueOnError)
	f.SetOutput(w.c.Err)
	public := f.String("key", "", "public `KEY`, or its file")
	if err := f.Parse(w.args); err != nil {
		return err
	}
	if f.NArg() != 1 || *public == "" {
		return errors.New("verify --key PUBLIC FILE.tar.gz")
	}
	key, err := publicKey(*public)
	if err != nil {
		return err
	}
	archive, err := os.ReadFile(f.Arg(0))
	if err != nil {
		return err
	}
	signature, err := os.ReadFile(f.Arg(0) + signatureSuffix)
	if err != nil {
		return err
	}
	b, err := Verify(archive, signature, []Key{key}, 1<<30)
	if err != nil {
		return err
	}
	tell(w.c.Out, b.Manifest)
	return w.judge(b)
}

// publicKey is the key itself or a file with it.
func publicKey(text string) (key Key, err error) {
	if file, readErr := os.ReadFile(text); readErr == nil {
		text = string(file)
	}
	err = key.UnmarshalText(trimmed([]byte(text)))
	return key, err
}

func tell(w io.Writer, m Manifest) {
	fmt.Fprintf(w, "%s, serial %d, created %s", m.Name, m.Serial, m.Created.Format(time.RFC3339))
	if !m.Expires.IsZero() {
		fmt.Fprintf(w, ", expires %s", m.Expires.Format(time.RFC3339))
	}
	fmt.Fprintln(w)
	for _, f := range m.Files {
		fmt.Fprintf(w, "  %-16s %s\n", f.Kind, f.Name)
	}
}

// status of the feeds, as the agent left it.
func (w work) status() error {
	sources, err := w.sources()
	if err != nil {
		return err
	}
	for _, s := range sources {
		st, err := storeOf(w.c.StateDir, s.Name).read()
		if err != nil {
			return err
		}
		fmt.Fprintf(w.c.Out, "%s\n  in use       %s\n  before it    %s\n  looked at    %s\n", s.Name, serial(st.Applied), serial(st.Previous), since(st.Checked))
		if st.Unreachable != "" {
			fmt.Fprintf(w.c.Out, "  out of reach %s\n", st.Unreachable)
		}
		if st.Refused != "" {
			fmt.Fprintf(w.c.Out, "  refused      %s\n", st.Refused)
		}
	}
	return nil
}

// serial of an id.
func serial(id string) string {
	if id == "" {
		return "none"
	}
	return "serial " + cmp.Or(strings.TrimLeft(id, "0"), "0")
}

func since(t time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return t.Format(time.RFC3339)
}

// change the state of a feed that the arguments name.
func (w work) change(how func(*state) error) error {
	sources, err := w.sources()
	if err != nil {
		return err
	}
	if len(w.args) != 1 {
		return errors.New("name one feed")
	}
	for _, s := range sources {
		if s.Name != w.args[0] {
			continue
		}
		keep := storeOf(w.c.StateDir, s.Name)
		unlock, err := keep.lock()
		if err != nil {
			return err
		}
		defer unlock()
		st, err := keep.read()
		if err == nil {
			err = how(&st)
		}
		if err != nil {
			return err
		}
		return keep.write(st)
	}
	return fmt.Errorf("there is no feed %q in the configuration", w.args[0])
}

// rollback leaves the serial as it is, so that the bundle in use until now is not taken again.
func rollback(s *state) error {
	if s.Previous == "" {
		return errors.New("there is no bundle before the one in use")
	}
	s.Applied, s.Previous = s.Previous, ""
	return nil
}

// reset forgets the serial and has the source looked at.
func reset(s *state) error {
	s.Serial, s.Seen, s.ETag, s.Refused, s.Checked = 0, "", "", "", time.Time{}
	return nil
}
