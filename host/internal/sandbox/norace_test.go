//go:build !race

package sandbox

// raceEnabled tells whether the race detector is part of the test binary.
const raceEnabled = false
