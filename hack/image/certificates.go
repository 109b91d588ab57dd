package main

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"

	"golang.org/x/crypto/x509roots/fallback/bundle"
)

// certificatesPath is where Debian, Go and rustls-native-certs look first.
const certificatesPath = "/etc/ssl/certs/ca-certificates.crt"

// trustedCertificates is Mozilla's list as the pinned module carries it, as PEM text with a comment above each.
// The machine's own list would make the image depend on where it was built.
// Roots that Mozilla trusts with a constraint (only leaves issued before a date, say) are left out:
// a PEM file cannot carry the constraint, and trusting them without it would be more than Mozilla does.
func trustedCertificates() ([]byte, error) {
	var text bytes.Buffer
	for root := range bundle.Roots() {
		if root.Constraint != nil {
			continue
		}
		if err := pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: root.Certificate}); err != nil {
			return nil, fmt.Errorf("failed to encode a certificate: %w", err)
		}
	}
	if text.Len() == 0 {
		return nil, errors.New("the module of root certificates is empty")
	}
	return text.Bytes(), nil
}
