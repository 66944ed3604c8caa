package catalog

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// describing answers as a program does that calls itself name and version.
func describing(name, version string) Describe {
	return func(context.Context, []string, string) (Described, error) {
		return Described{Name: name, Version: version, Protocol: 1, Category: "other"}, nil
	}
}

// script is a program that is told apart by its text.
func script(text string) []byte { return []byte("#!/bin/sh\n# " + text + "\n") }

func write(t *testing.T, content []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "agent")
	if err := os.WriteFile(path, content, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// put installs a script as a version.
func put(t *testing.T, c *Catalog, name, version string) *Entry {
	t.Helper()
	e, fresh, err := c.Install(t.Context(), write(t, script(name+version)), describing(name, version))
	if err != nil || !fresh {
		t.Fatalf("installing %s %s: %v, %v", name, version, fresh, err)
	}
	return e
}

// A constraint takes the newest version that it admits, but what is locked before others; a pre-release only by name.
func TestResolve(t *testing.T) {
	c := In(t.TempDir())
	entries := map[string]*Entry{}
	for _, v := range []string{"1.0.0", "1.2.0", "1.2.9", "1.10.0", "2.0.0-rc.1", "2.0.0-rc.2", "3.0.0-beta"} {
		entries[v] = put(t, c, "filter", v)
	}
	put(t, c, "other", "1.3.0")
	for _, test := range []struct{ constraint, locked, want string }{
		{"1.2.0", "", "1.2.0"},
		{"= 1.2.0", "", "1.2.0"},
		{"~> 1.2", "", "1.10.0"},
		{"~> 1.2.0", "", "1.2.9"},
		{"~> 1.2", "1.2.0", "1.2.0"},
		{"~> 1.2.0", "1.10.0", "1.2.9"},
		{">= 1.0, < 1.10", "", "1.2.9"},
		{"!= 1.10.0", "", "1.2.9"},
		{">= 1.0", "", "1.10.0"},
		{"2.0.0-rc.1", "", "2.0.0-rc.1"},
		{">= 2.0.0-rc.1", "", "2.0.0-rc.2"},
		{"~> 2.0.0-rc", "", "2.0.0-rc.2"},
		{"~> 1.3.0", "", ""},
		{"2.0.0", "", ""},
	} {
		locked := ""
		if e := entries[test.locked]; e != nil {
			locked = e.SHA256
		}
		e, err := c.Resolve("filter", test.constraint, locked)
		switch {
		case test.want == "" && (!errors.Is(err, ErrNone) || !strings.Contains(err.Error(), "installed: 3.0.0-beta, 2.0.0-rc.2, 2.0.0-rc.1, 1.10.0")):
			t.Errorf("%q: %v, %v", test.constraint, e, err)
		case test.want != "" && (err != nil || e.Version != test.want):
			t.Errorf("%q with %q locked: %v, %v; want %s", test.constraint, test.locked, e, err, test.want)
		}
	}
	for _, bad := range []string{"", "newest", "~> x", "1.2.3.", ">= 1.0,"} {
		if e, err := c.Resolve("filter", bad, ""); err == nil || errors.Is(err, ErrNone) {
			t.Errorf("%q: %v, %v", bad, e, err)
		}
	}
	if _, err := c.Resolve("nothing", "1.0.0", ""); err == nil || !strings.Contains(err.Error(), "none is installed") {
		t.Errorf("of no agent: %v", err)
	}
}

func TestNamesAndVersionsThatAreNone(t *testing.T) {
	c := In(t.TempDir())
	for _, test := range []struct{ name, version, want string }{
		{"filter", "(devel)", "1.2.0"}, {"filter", "v1.0.0", "1.2.0"}, {"filter", "", "1.2.0"}, {"filter", "1.0.0-", "1.2.0"},
		{"../filter", "1.0.0", "no name"}, {"", "1.0.0", "no name"}, {"Filter", "1.0.0", "no name"},
	} {
		if _, _, err := c.Install(t.Context(), write(t, script("x")), describing(test.name, test.version)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q %q: %v", test.name, test.version, err)
		}
	}
	none(t, c)
}

// none wants a catalog without entries and leftovers.
func none(t *testing.T, c *Catalog) {
	t.Helper()
	names, err := os.ReadDir(c.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, one := range names {
		if one.Name() != lockName {
			t.Errorf("%s is in the catalog", one.Name())
		}
	}
}

// member of an archive.
type member struct {
	name, content, link string
	mode                int64
	kind                byte
}

func tarball(t testing.TB, members ...member) []byte {
	t.Helper()
	var raw bytes.Buffer
	packed := gzip.NewWriter(&raw)
	w := tar.NewWriter(packed)
	for _, m := range members {
		h := &tar.Header{Name: m.name, Mode: m.mode, Typeflag: m.kind, Linkname: m.link, Size: int64(len(m.content))}
		if m.kind != 0 && m.kind != tar.TypeReg {
			h.Size = 0
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), packed.Close()); err != nil {
		t.Fatal(err)
	}
	return raw.Bytes()
}

func zipped(t testing.TB, members ...member) []byte {
	t.Helper()
	var raw bytes.Buffer
	w := zip.NewWriter(&raw)
	for _, m := range members {
		h := &zip.FileHeader{Name: m.name, Method: zip.Deflate}
		mode := fs.FileMode(m.mode)
		if m.kind == tar.TypeSymlink {
			mode |= fs.ModeSymlink
		}
		h.SetMode(mode)
		f, err := w.CreateHeader(h)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(f, m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return raw.Bytes()
}

var (
	about   = member{name: "manifest.json", content: `{"name": "filter", "version": "1.2.0", "program": "bin/filter"}`, mode: 0o644}
	program = member{name: "bin/filter", content: "#!/bin/sh\n", mode: 0o4755}
	model   = member{name: "./model.bin", content: "weights", mode: 0o666}
)

func TestArchives(t *testing.T) {
	for kind, raw := range map[string][]byte{
		"tar.gz": tarball(t, about, member{name: "bin/", kind: tar.TypeDir, mode: 0o777}, program, model),
		"zip":    zipped(t, about, program, member{name: "model.bin", content: "weights", mode: 0o666}),
	} {
		t.Run(kind, func(t *testing.T) {
			c := In(t.TempDir())
			e, _, err := c.Install(t.Context(), write(t, raw), describing("filter", "1.2.0"))
			if err != nil {
				t.Fatal(err)
			}
			if got := e.Command()[0]; got != filepath.Join(c.dir, entryName+e.SHA256, contentDir, "bin/filter") {
				t.Errorf("it runs %s", got)
			}
			for name, want := range map[string]fs.FileMode{"bin/filter": 0o555, "model.bin": 0o444, "bin": fs.ModeDir | 0o555} {
				info, err := os.Stat(filepath.Join(e.Content(), name))
				if err != nil || info.Mode() != want {
					t.Errorf("%s: %v, %v; want %v", name, info.Mode(), err, want)
				}
			}
			if _, err := new(Sums).Verify(e.Sums()); err != nil || len(e.Sums()) != 3 {
				t.Errorf("%d digests, %v", len(e.Sums()), err)
			}
			if of, err := c.Of(e.Command()[0]); err != nil || of.SHA256 != e.SHA256 {
				t.Errorf("the program is of %v, %v", of, err)
			}
			if got := ContentOf(e.Command()); got != e.Content() {
				t.Errorf("its files are in %q", got)
			}
		})
	}
}

// What an archive could do harm with is not unpacked, and nothing of it is left.
func TestHostileArchives(t *testing.T) {
	many := []member{about, program}
	for i := range maxFiles {
		many = append(many, member{name: fmt.Sprint("f", i), mode: 0o644})
	}
	for name, test := range map[string]struct {
		raw  []byte
		want string
	}{
		"up":          {tarball(t, about, program, member{name: "../evil", content: "x", mode: 0o644}), "is not unpacked"},
		"up inside":   {tarball(t, about, program, member{name: "a/../../evil", content: "x", mode: 0o644}), "is not unpacked"},
		"absolute":    {tarball(t, about, program, member{name: "/tmp/evil", content: "x", mode: 0o644}), "is not unpacked"},
		"zip up":      {zipped(t, about, program, member{name: "../evil", content: "x", mode: 0o644}), "is not unpacked"},
		"backslash":   {zipped(t, about, program, member{name: `..\evil`, content: "x", mode: 0o644}), ""},
		"line end":    {tarball(t, about, program, member{name: "a\nb", content: "x", mode: 0o644}), "is not unpacked"},
		"long":        {tarball(t, about, program, member{name: strings.Repeat("a", 300), content: "x", mode: 0o644}), "is not unpacked"},
		"symlink":     {tarball(t, about, program, member{name: "l", link: "/etc/passwd", kind: tar.TypeSymlink}), "links"},
		"link":        {tarball(t, about, program, member{name: "l", link: "bin/filter", kind: tar.TypeLink}), "links"},
		"zip symlink": {zipped(t, about, program, member{name: "l", content: "/etc/passwd", kind: tar.TypeSymlink}), "links"},
		"device":      {tarball(t, about, program, member{name: "d", kind: tar.TypeChar}), "devices"},
		"pipe":        {tarball(t, about, program, member{name: "p", kind: tar.TypeFifo}), "neither a file nor a folder"},
		"twice":       {tarball(t, about, program, program), "twice"},
		"through":     {tarball(t, about, program, member{name: "bin/filter/x", content: "x", mode: 0o644}), "unpacking"},
		"too many":    {tarball(t, many...), "more than 2000 files"},
		"no manifest": {tarball(t, program), "no manifest.json"},
		"manifest":    {tarball(t, member{name: "manifest.json", content: "{", mode: 0o644}, program), "manifest.json"},
		"large":       {tarball(t, member{name: "manifest.json", content: strings.Repeat(" ", maxManifest+1), mode: 0o644}, program), "manifest.json"},
		"no program":  {tarball(t, about), "not an executable file"},
		"plain":       {tarball(t, about, member{name: "bin/filter", content: "#!/bin/sh\n", mode: 0o644}), "not an executable file"},
		"outside":     {tarball(t, member{name: "manifest.json", content: `{"name": "filter", "version": "1.2.0", "program": "../../bin/sh"}`, mode: 0o644}, program), "not an executable file"},
		"other":       {tarball(t, member{name: "manifest.json", content: `{"name": "filter", "version": "1.3.0", "program": "bin/filter"}`, mode: 0o644}, program), "the program says filter 1.2.0"},
		"cut":         {tarball(t, about, program, model)[:60], "reading the archive"},
		"bomb":        {bomb(t), "more than 1024 MiB"},
		"text":        {[]byte("hello, world"), "neither a program"},
		"nothing":     {nil, "too short"},
	} {
		t.Run(name, func(t *testing.T) {
			c := In(t.TempDir())
			_, _, err := c.Install(t.Context(), write(t, test.raw), describing("filter", "1.2.0"))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("%v; want %q", err, test.want)
			}
			none(t, c)
			if exists("/tmp/evil") || exists(filepath.Join(filepath.Dir(c.dir), "evil")) {
				t.Error("it was unpacked outside")
			}
		})
	}
}

// What is too large to be an agent is not even read.
func TestHugeProgram(t *testing.T) {
	path := write(t, script("huge"))
	if err := os.Truncate(path, maxFetched+1); err != nil { // a hole
		t.Fatal(err)
	}
	c := In(t.TempDir())
	if _, _, err := c.Install(t.Context(), path, describing("huge", "1.0.0")); err == nil || !strings.Contains(err.Error(), "more than 512 MiB") {
		t.Errorf("%v", err)
	}
	none(t, c)
}

// bomb announces a file of two GiB in a few bytes.
func bomb(t *testing.T) []byte {
	var raw bytes.Buffer
	packed := gzip.NewWriter(&raw)
	w := tar.NewWriter(packed)
	if err := w.WriteHeader(&tar.Header{Name: "zeros", Mode: 0o644, Size: 2 << 30}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if err := packed.Close(); err != nil {
		t.Fatal(err)
	}
	return raw.Bytes()
}

// A damaged entry is replaced by installing it again, and an undamaged one stays as it is.
func TestInstallingAgain(t *testing.T) {
	c := In(t.TempDir())
	source := write(t, script("one"))
	install := func() (*Entry, bool) {
		t.Helper()
		e, fresh, err := c.Install(t.Context(), source, describing("filter", "1.0.0"))
		if err != nil {
			t.Fatal(err)
		}
		return e, fresh
	}
	first, _ := install()
	if e, fresh := install(); fresh || e.Installed != first.Installed {
		t.Errorf("it was installed twice")
	}
	if err := os.Chmod(first.Command()[0], 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(first.Command()[0], script("two"), 0o755); err != nil {
		t.Fatal(err)
	}
	var changed *Changed
	if _, err := new(Sums).Verify(first.Sums()); !errors.As(err, &changed) {
		t.Fatalf("a damaged file: %v", err)
	}
	if e, fresh := install(); !fresh || e.SHA256 != first.SHA256 {
		t.Errorf("the damaged one stays")
	}
	if _, err := new(Sums).Verify(first.Sums()); err != nil {
		t.Errorf("after mending: %v", err)
	}
	if names, err := os.ReadDir(c.dir); err != nil || len(names) != 2 {
		t.Errorf("the catalog holds %v, %v", names, err)
	}
}

// What an entry says of itself is held against the name of its folder.
func TestDescriptionsAreNotBelieved(t *testing.T) {
	c := In(t.TempDir())
	e := put(t, c, "filter", "1.0.0")
	path := filepath.Join(e.dir, describes)
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		"", "{", "{}", strings.ReplaceAll(string(raw), e.SHA256, strings.Repeat("0", 64)),
		strings.Replace(string(raw), `"path": "agent"`, `"path": "../../../agent"`, 1),
		strings.Replace(string(raw), `"program": "agent"`, `"program": "../../../bin/sh"`, 1),
		strings.Replace(string(raw), `"1.0.0"`, `"one"`, 1),
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if entries, broken, err := c.List(); err != nil || len(entries) != 0 || len(broken) != 1 {
			t.Errorf("%s: %v, %v, %v", text, entries, broken, err)
		}
	}
	if _, broken, err := c.Prune(t.Context(), false, func(*Entry) bool { return false }); err != nil || len(broken) != 1 {
		t.Errorf("prune: %v, %v", broken, err)
	}
	none(t, c)
}

// Digests are remembered while a file is as it was, and not a moment longer.
func TestSums(t *testing.T) {
	path := write(t, script("one"))
	var sums Sums
	first, id, err := sums.Of(path)
	if err != nil || len(sums.known) != 0 {
		t.Fatalf("%v; a file that was changed just now is remembered", err)
	}
	id.Changed -= int64(2 * settled)
	sums.remember(id, first)
	if got, ok := sums.remembered(id); !ok || got != first {
		t.Errorf("remembered is %q", got)
	}
	if err := os.WriteFile(path, script("two"), 0o755); err != nil {
		t.Fatal(err)
	}
	if again, _, err := sums.Of(path); err != nil || again == first {
		t.Errorf("after a change of the same size: %q, %v", again, err)
	}
	if _, _, err := (*Sums)(nil).Of(t.TempDir()); err == nil {
		t.Error("a folder has a digest")
	}
}

func TestLockFile(t *testing.T) {
	dir := t.TempDir()
	lock := &Lock{Agents: []Locked{
		{Name: "judge", Plugin: "filter", Version: "1.2.0", Source: "catalog", SHA256: map[string]string{"/a b/${x}\"": "00", "/c": "ff"}},
		{Name: "other", Plugin: "other", Version: "2.0.0", Source: "command", SHA256: map[string]string{}},
	}}
	for range 2 {
		if err := lock.Write(dir); err != nil {
			t.Fatal(err)
		}
	}
	read, err := ReadLock(dir)
	if err != nil || !read.Same(lock) {
		t.Fatalf("%+v, %v", read, err)
	}
	if got := read.Of("judge").SHA256; !maps.Equal(got, lock.Agents[0].SHA256) {
		t.Errorf("digests %v", got)
	}
	if one := read.Without("judge"); len(one.Agents) != 1 || one.Of("judge").Name != "" || len(read.Agents) != 2 {
		t.Errorf("without: %+v", one)
	}
	if err := os.WriteFile(filepath.Join(dir, lockFile), []byte("agent {"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadLock(dir); err == nil || !strings.Contains(err.Error(), lockFile+":1") {
		t.Errorf("nonsense: %v", err)
	}
	if none, err := ReadLock(t.TempDir()); err != nil || len(none.Agents) != 0 {
		t.Errorf("without a file: %v, %v", none, err)
	}
}

// While one command changes the catalog, another waits, as long as it may.
func TestOneAtATime(t *testing.T) {
	c := In(t.TempDir())
	release, err := c.hold(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("enough"))
	if _, err := c.hold(ctx); err == nil || !strings.Contains(err.Error(), "enough") {
		t.Errorf("held twice: %v", err)
	}
	release()
	if release, err = c.hold(t.Context()); err != nil {
		t.Fatal(err)
	}
	release()
}

// FuzzUnpack wants nothing outside of the folder, and every file to be what was said.
func FuzzUnpack(f *testing.F) {
	f.Add(tarball(f, about, program, model))
	f.Add(zipped(f, about, program))
	f.Add(tarball(f, about, program, member{name: "../evil", content: "x", mode: 0o644}))
	f.Add([]byte("#!/bin/sh\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if len(raw) > 1<<16 {
			return
		}
		dir := t.TempDir()
		content := filepath.Join(dir, "content")
		if err := os.Mkdir(content, 0o755); err != nil {
			t.Fatal(err)
		}
		source := filepath.Join(dir, "source")
		if err := os.WriteFile(source, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		u := &unpacker{dir: content}
		if err := u.unpack(source, "agent"); err != nil {
			return
		}
		if names, err := os.ReadDir(dir); err != nil || len(names) != 2 {
			t.Fatalf("%v, %v", names, err)
		}
		for _, file := range u.files {
			if sum, _, err := (*Sums)(nil).Of(filepath.Join(content, file.Path)); err != nil || sum != file.SHA256 {
				t.Fatalf("%s: %v", file.Path, err)
			}
		}
		if !slices.ContainsFunc(u.files, func(one File) bool { return one.Path == u.program }) {
			t.Fatalf("no program %q", u.program)
		}
	})
}
