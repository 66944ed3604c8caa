package agent

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/posternmail/postern/sdk/agentpb"
)

// lockAndEndThread runs f on a thread that ends with it.
func lockAndEndThread(f func()) {
	runtime.LockOSThread()
	f()
}

// appendHeader appends an event with a header of n bytes.
func appendHeader(b []byte, n int) []byte {
	e := &agentpb.Event{Headers: []*agentpb.HeaderField{{Name: []byte("Subject"), Value: make([]byte, n)}}}
	b, err := proto.MarshalOptions{}.MarshalAppend(b, e)
	if err != nil {
		panic(err)
	}
	return b
}

// clockGettime reads a clock.
func clockGettime(clock int32) (time.Duration, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(clock, &ts)
	return time.Duration(ts.Nano()), err
}
