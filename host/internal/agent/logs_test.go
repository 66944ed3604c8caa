package agent

import (
	"strings"
	"testing"
	"unicode"

	"github.com/hashicorp/go-hclog"
)

// Whatever an agent writes becomes lines of the log that it did not forge.
func FuzzStderr(f *testing.F) {
	for _, seed := range []string{
		"plain", `{"@message":5}`, `{"@level":"off","@message":"x"}`, `{"a":`, "[ERROR] bad", "[]", "[", "panic: x\n\ngoroutine 1\n[INFO] on",
		"\x1b]0;title\x07", "\xff\xfe", "{}", `{"@level":null,"@message":null,"@timestamp":null,"k":[1,{"b":null}]}`, strings.Repeat("{", 5000),
		`{"\n2026-01-02T03:04:05 [ERROR] forged":"\n"}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, octets []byte) {
		var out strings.Builder
		l := newLogs(hclog.New(&hclog.LoggerOptions{Output: &out, Level: hclog.Trace, DisableTime: true}))
		l.readErrors(strings.NewReader(string(octets)))
		for _, line := range l.tail(keptLines) {
			if strings.ContainsFunc(line, unicode.IsControl) || len(line) > keptLineBytes {
				t.Errorf("kept %q", line)
			}
		}
		for line := range strings.Lines(out.String()) {
			if !strings.HasPrefix(line, "[") && !strings.HasPrefix(line, "  ") {
				t.Errorf("a forged line %q of\n%s", line, out.String())
			}
		}
	})
}

func TestLevels(t *testing.T) {
	l := newLogs(hclog.NewNullLogger())
	for _, test := range []struct {
		line  string
		level hclog.Level
	}{
		{"text", hclog.Info}, {"[TRACE] t", hclog.Trace}, {"[DEBUG] d", hclog.Debug}, {"[WARN] w", hclog.Warn}, {"[x] y", hclog.Info},
		{"panic: runtime error", hclog.Error}, {"", hclog.Error}, {"goroutine 1 [running]:", hclog.Error},
		{"[INFO] on it goes", hclog.Info}, {"text", hclog.Info},
		{"Traceback (most recent call last):", hclog.Error}, {`  File "a.py", line 1`, hclog.Error},
		{`{"level":"debug","msg":"m"}`, hclog.Debug}, {"text", hclog.Info},
	} {
		if e := l.parse([]byte(test.line), false); e.level != test.level {
			t.Errorf("%q: level %s, want %s", test.line, e.level, test.level)
		}
	}
}
