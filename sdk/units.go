package sdk

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes, written with a unit in the configuration: "25 MB", "64 KiB".
type Size int64

// Units of size.
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
)

// sizeUnits in bytes, in steps of 1024 with and without the i, as operators of mail systems write them.
var sizeUnits = map[string]float64{
	"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40,
	"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}

// ParseSize reads "25 MB", "64 KiB" (units in steps of 1024) or a plain number of bytes.
func ParseSize(s string) (Size, error) {
	s = strings.TrimSpace(s)
	i := strings.LastIndexAny(s, "0123456789.") + 1
	unit, ok := sizeUnits[strings.ToLower(strings.TrimSpace(s[i:]))]
	n, err := strconv.ParseFloat(s[:i], 64)
	if !ok || err != nil || n < 0 || n*unit > math.MaxInt64/2 {
		return 0, fmt.Errorf("%q is no size such as \"25 MB\" or \"64 KiB\"", s)
	}
	return Size(n * unit), nil
}

// ParseDuration is time.ParseDuration with days and weeks: "36d", "2w", "1d12h".
func ParseDuration(s string) (time.Duration, error) {
	rest, total := strings.TrimSpace(s), time.Duration(0)
	for _, unit := range []struct {
		suffix string
		length time.Duration
	}{{"w", 7 * 24 * time.Hour}, {"d", 24 * time.Hour}} {
		before, after, found := strings.Cut(rest, unit.suffix)
		if !found {
			continue
		}
		n, err := strconv.ParseFloat(before, 64)
		if err != nil || math.Abs(n) > 1e5 {
			return 0, fmt.Errorf("%q is no duration such as \"5m\" or \"36d\"", s)
		}
		total += time.Duration(n * float64(unit.length))
		if rest = after; rest == "" {
			return total, nil
		}
	}
	d, err := time.ParseDuration(rest)
	if err != nil {
		return 0, fmt.Errorf("%q is no duration such as \"5m\" or \"36d\"", s)
	}
	return total + d, nil
}

// parsePrefix reads a network, or an address as a network of its own.
func parsePrefix(s string) (netip.Prefix, error) {
	if addr, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(addr, addr.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("%q is no network such as 192.0.2.0/24", s)
	}
	return p.Masked(), nil
}
