package test

import (
	"bufio"
	"net"
	"strings"
	"testing"

	"github.com/posternmail/postern/test/rig"
)

// TestConnectorsThatShareAnAddress: each client is for the connector with the most specific range that holds it.
func TestConnectorsThatShareAnAddress(t *testing.T) {
	h := rig.Start(t, strings.Replace(plain, `receive_connector "in" {`, `receive_connector "hubs" {
  listen      = ["{addr}"]
  remote      = ["127.0.0.2", "127.0.1.0/24"]
  permissions = ["own_servers"]
  banner      = "hubs ESMTP"
}
receive_connector "one" {
  listen      = ["{addr}"]
  remote      = ["127.0.1.7"]
  permissions = ["anonymous"]
  banner      = "one ESMTP"
}
receive_connector "in" {
  banner      = "everybody ESMTP"`, 1))
	for round := range 5 {
		for client, want := range map[string]string{"127.0.0.1": "everybody", "127.0.0.2": "hubs", "127.0.1.6": "hubs", "127.0.1.7": "one", "127.0.2.1": "everybody"} {
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(client)}}
			conn, err := dialer.Dial("tcp", h.Addr)
			if err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(conn).ReadString('\n')
			_ = conn.Close()
			if err != nil || !strings.Contains(line, want+" ESMTP") {
				t.Errorf("round %d: %s is greeted with %q, %v", round, client, line, err)
			}
		}
	}
}
