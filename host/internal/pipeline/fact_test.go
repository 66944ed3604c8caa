package pipeline

import "testing"

// Facts that wait are bounded in bytes too: those of a message with a large header are not thousands.
func TestFactsAreBoundedInBytes(t *testing.T) {
	const each = 1 << 20
	var q factQueue
	taken := 0
	for range 40 {
		if q.take(each) {
			taken++
		}
	}
	if taken != maxFactBytes/each || q.dropped.Load() != uint64(40-taken) {
		t.Errorf("%d taken, %d dropped", taken, q.dropped.Load())
	}
	for range taken {
		q.release(each)
	}
	if !q.take(2*maxFactBytes) || q.take(1) {
		t.Error("one fact, however large, is taken when there is no other, and then no more")
	}
	q.release(2 * maxFactBytes)
	if q.waiting.Load() != 0 || q.bytes.Load() != 0 {
		t.Errorf("left: %d facts, %d bytes", q.waiting.Load(), q.bytes.Load())
	}
}
