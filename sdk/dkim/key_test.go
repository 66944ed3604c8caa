package dkim

import "testing"

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
