package dkim

import (
	"context"
	"testing"
)

// FuzzKey: the record is the signer's, so it may be anything; a key that is taken can be asked whether a signature is its own.
func FuzzKey(f *testing.F) {
	f.Add("v=DKIM1; k=rsa; h=sha256; s=email; t=y:s; p=MFwwDQYJKoZIhvcNAQEBBQADSwAwSAJBAKj34GkxFhD90vcNLYLInFEX6Ppy1tPf9Cnzj4p4WGeKLs1Pt8QuKUpRKfFLfRYC9AIKjbJTWit+CqvjWYzvQwECAwEAAQ==")
	f.Add("v=DKIM1; k=ed25519; p=11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
	f.Add("p=; =; k")
	f.Add("k=rsa; p=MAA=")
	f.Fuzz(func(t *testing.T, record string) {
		k, err := parseKey(record)
		if err != nil {
			return
		}
		for _, name := range []string{"rsa-sha256", "rsa-sha1", "ed25519-sha256"} {
			a, err := parseAlgorithm(name)
			if err != nil {
				t.Fatal(err)
			}
			if k.permits(a) == nil && k.verify(a, make([]byte, 32), make([]byte, 64)) {
				t.Errorf("%q: nothing is its signature", record)
			}
		}
		k.bits()
	})
}

// TestPanicIsTheCallers: what goes wrong in a lookup comes to who asked, and does not end the process.
func TestPanicIsTheCallers(t *testing.T) {
	defer func() {
		if cause := recover(); cause != "lookup" {
			t.Errorf("recovered %v", cause)
		}
	}()
	v := &Verifier{Lookup: func(context.Context, string) ([]string, error) { panic("lookup") }, Now: start}
	v.Verify(t.Context(), messageOf("DKIM-Signature: v=1; a=rsa-sha256; d=x.example; s=y; h=from; bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=; b=AAAA\r\nFrom: a@x.example\r\n\r\n"))
	t.Error("the panic is gone")
}
