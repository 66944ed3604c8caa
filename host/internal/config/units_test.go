package config

import (
	"testing"
	"time"
)

func TestParseDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "1h30m": 90 * time.Minute, "1h 30m": 90 * time.Minute, "30d": 720 * time.Hour,
		"2w": 336 * time.Hour, "1.5h": 90 * time.Minute, "250ms": 250 * time.Millisecond, "-5m": -5 * time.Minute, "0s": 0,
		" 5s ": 5 * time.Second,
	} {
		if got, err := ParseDuration(text); err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "5", "s", "5x", "5 s s", "1e3s", "300000000w", "--5s", "5s-", "1..5s", "5µs", "0x5s"} {
		if got, err := ParseDuration(text); err == nil {
			t.Errorf("%q is taken as %v", text, got)
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]int64{
		"36 MB": 36 << 20, "64KiB": 64 << 10, "512": 512, "1.5 GB": 3 << 29, "10 b": 10, "1 tb": 1 << 40, "0": 0,
	} {
		if got, err := ParseSize(text); err != nil || got != want {
			t.Errorf("%q: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"", "MB", "-1 MB", "1 XB", "1 MB 2", "1,5 MB", "99999999 TB", "1e3"} {
		if got, err := ParseSize(text); err == nil {
			t.Errorf("%q is taken as %v", text, got)
		}
	}
}

func TestFormatDuration(t *testing.T) {
	for text, want := range map[string]string{
		"36d": "36d", "2w": "14d", "90s": "1m30s", "60s": "1m", "250ms": "250ms", "25h": "1d1h", "0s": "0s",
	} {
		d, err := ParseDuration(text)
		if err != nil || FormatDuration(d) != want {
			t.Errorf("%q: %q, %v; want %q", text, FormatDuration(d), err, want)
		}
	}
}

// Libraries of other languages know no days and weeks, so agents get hours.
func TestInHours(t *testing.T) {
	for text, want := range map[string]string{
		"36d": "864h", "1w12h": "180h", "1d30m": "24h30m", "90s": "90s", "0d": "0h", "-2d": "-48h", "1.5d": "36h",
	} {
		d, err := ParseDuration(text)
		if err != nil || inHours(text, d) != want {
			t.Errorf("%q: %q, %v; want %q", text, inHours(text, d), err, want)
		}
		if back, err := time.ParseDuration(inHours(text, d)); err != nil || back != d {
			t.Errorf("%q comes back as %v, %v", text, back, err)
		}
	}
}
