package config

import (
	"errors"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
)

var durationUnits = map[string]time.Duration{
	"ms": time.Millisecond,
	"s":  time.Second,
	"m":  time.Minute,
	"h":  time.Hour,
	"d":  24 * time.Hour,
	"w":  7 * 24 * time.Hour,
}

// ParseDuration reads a duration such as "90s", "1h30m", "36d" or "2w": the units are ms, s, m, h, d and w. A
// day is 24 hours. The sign may be negative; callers bound the value.
func ParseDuration(s string) (time.Duration, error) {
	rest, negative := strings.CutPrefix(strings.TrimSpace(s), "-")
	if rest == "" {
		return 0, errors.New("empty")
	}
	total := new(big.Rat)
	for rest != "" {
		number, unit, after := cutQuantity(rest)
		amount, ok := parseAmount(number)
		if !ok {
			return 0, fmt.Errorf("%q is not a number", number)
		}
		if unit == "" {
			return 0, fmt.Errorf("no unit behind %s; use ms, s, m, h, d or w", number)
		}
		scale, ok := durationUnits[unit]
		if !ok {
			return 0, fmt.Errorf("unknown unit %q; use ms, s, m, h, d or w", unit)
		}
		total.Add(total, amount.Mul(amount, new(big.Rat).SetInt64(int64(scale))))
		rest = strings.TrimLeft(after, " ")
	}
	nanos, err := whole(total)
	if err != nil {
		return 0, err
	}
	if negative {
		nanos = -nanos
	}
	return time.Duration(nanos), nil
}

var sizeUnits = map[string]int64{
	"": 1, "b": 1,
	"kb": 1 << 10, "kib": 1 << 10,
	"mb": 1 << 20, "mib": 1 << 20,
	"gb": 1 << 30, "gib": 1 << 30,
	"tb": 1 << 40, "tib": 1 << 40,
}

// ParseSize reads a size such as "36 MB", "64KiB" or "512": bytes, with B, KB, MB, GB and TB (and KiB...) in
// steps of 1024, as mail systems count.
func ParseSize(s string) (int64, error) {
	text := strings.TrimSpace(s)
	if text == "" {
		return 0, errors.New("empty")
	}
	if strings.HasPrefix(text, "-") {
		return 0, errors.New("negative")
	}
	number, unit, rest := cutQuantity(text)
	amount, ok := parseAmount(number)
	if !ok {
		return 0, errors.New("it does not begin with a number")
	}
	if rest != "" {
		return 0, fmt.Errorf("%q follows the unit", rest)
	}
	scale, ok := sizeUnits[strings.ToLower(unit)]
	if !ok {
		return 0, fmt.Errorf("unknown unit %q; use B, KB, MB, GB or TB", unit)
	}
	return whole(amount.Mul(amount, new(big.Rat).SetInt64(scale)))
}

// cutQuantity splits "1.5 MB rest" into number, unit and what follows.
func cutQuantity(s string) (number, unit, rest string) {
	i := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if i < 0 {
		return s, "", ""
	}
	number, s = s[:i], strings.TrimLeft(s[i:], " ")
	if number == "" {
		return s, "", ""
	}
	i = strings.IndexFunc(s, func(r rune) bool { return r == ' ' || r == '.' || r == '-' || (r >= '0' && r <= '9') })
	if i < 0 {
		return number, s, ""
	}
	return number, s[:i], s[i:]
}

// parseAmount takes digits with at most one point. Its length is bounded, since rationals of any size are not.
func parseAmount(s string) (*big.Rat, bool) {
	if s == "" || len(s) > 24 || strings.Trim(s, ".0123456789") != "" {
		return nil, false
	}
	return new(big.Rat).SetString(s)
}

func whole(r *big.Rat) (int64, error) {
	n := new(big.Int).Quo(r.Num(), r.Denom())
	if !n.IsInt64() || n.Int64() == math.MinInt64 {
		return 0, errors.New("too large")
	}
	return n.Int64(), nil
}

// FormatDuration writes a duration in the notation of ParseDuration, in the fewest units: "2d", "1h30m".
func FormatDuration(d time.Duration) string {
	if d <= 0 || d%time.Millisecond != 0 {
		return d.String()
	}
	var b strings.Builder
	for _, unit := range []string{"d", "h", "m", "s", "ms"} {
		if n := d / durationUnits[unit]; n > 0 {
			b.WriteString(strconv.FormatInt(int64(n), 10) + unit)
			d %= durationUnits[unit]
		}
	}
	return b.String()
}

// inHours writes a duration without days and weeks, which other languages' libraries do not know: "36d" is
// "864h". A text without them stays as written.
func inHours(s string, d time.Duration) string {
	if !strings.ContainsAny(s, "dw") {
		return s
	}
	var b strings.Builder
	if d < 0 {
		b.WriteByte('-')
		d = -d
	}
	if h := d / time.Hour; h > 0 || d == 0 {
		b.WriteString(strconv.FormatInt(int64(h), 10) + "h")
		d %= time.Hour
	}
	if d > 0 {
		b.WriteString(FormatDuration(d.Truncate(time.Millisecond)))
	}
	return b.String()
}
