package dns

import "testing"

func TestOctets(t *testing.T) {
	for text, want := range map[string]string{
		`v=spf1 -all`: `v=spf1 -all`, `a\"b\\c`: `a"b\c`, `caf\195\169`: "caf\u00e9", `end\`: `end\`, `\12`: `12`, `\999`: `999`,
	} {
		if got := octets(text); got != want {
			t.Errorf("%s: %q, expected %q", text, got, want)
		}
	}
}

func TestEscaped(t *testing.T) {
	for name, want := range map[string]string{
		"x.example": "x.example", "a b.example": `a\ b.example`, `a\ b.example`: `a\ b.example`, "a@b": `a\@b`,
	} {
		if got := escaped(name); got != want {
			t.Errorf("%s: %q, expected %q", name, got, want)
		}
	}
}
