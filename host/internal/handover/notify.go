package handover

import (
	"fmt"
	"net"
	"os"
)

// Notify tells the service manager (sd_notify(3)) that the process pid is the service now and ready. Without one it does
// nothing.
func Notify(pid int) error {
	return notify(fmt.Sprintf("MAINPID=%d\nREADY=1", pid))
}

// NotifyStopping tells the service manager that the service ends.
func NotifyStopping() error { return notify("STOPPING=1") }

func notify(state string) error {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("telling the service manager: %w", err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(state)); err != nil {
		return fmt.Errorf("telling the service manager: %w", err)
	}
	return nil
}
