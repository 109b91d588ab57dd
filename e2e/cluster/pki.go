package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"time"
)

// authority signs certificates. Each cluster makes its own, anew at each start.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

// lifetime is how long a cluster's certificates are good for.
const lifetime = 365 * 24 * time.Hour

func newAuthority(name string) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := certificateTemplate(pkix.Name{CommonName: name})
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &authority{certificate, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}, nil
}

func certificateTemplate(subject pkix.Name) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		panic(fmt.Sprintf("the system's random numbers failed: %v", err))
	}
	// An hour back, because clocks on virtual machines jump.
	now := time.Now().Add(-time.Hour)
	return &x509.Certificate{SerialNumber: serial, Subject: subject, NotBefore: now, NotAfter: now.Add(lifetime)}
}

// identity is one certificate and its key, as PEM text.
type identity struct{ certificate, key []byte }

// issue signs a certificate for a client of that user and groups, and for a server of those names where there are any.
func (a *authority) issue(user string, groups []string, addresses []string, names []string) (identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return identity{}, err
	}
	template := certificateTemplate(pkix.Name{CommonName: user, Organization: groups})
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if len(addresses)+len(names) > 0 {
		template.ExtKeyUsage = append(template.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		template.DNSNames = names
		for _, address := range addresses {
			template.IPAddresses = append(template.IPAddresses, net.ParseIP(address))
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return identity{}, err
	}
	keyPEM, err := privatePEM(key)
	if err != nil {
		return identity{}, err
	}
	return identity{pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), keyPEM}, nil
}

func privatePEM(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// kubeconfig holds everything in itself, so that it can be copied.
func kubeconfig(cluster, server string, ca []byte, user identity) []byte {
	encode := base64.StdEncoding.EncodeToString
	return fmt.Appendf(nil, `apiVersion: v1
kind: Config
clusters:
- name: %[1]s
  cluster: {server: %[2]q, certificate-authority-data: %[3]s}
users:
- name: %[1]s
  user: {client-certificate-data: %[4]s, client-key-data: %[5]s}
contexts:
- name: %[1]s
  context: {cluster: %[1]s, user: %[1]s}
current-context: %[1]s
`, cluster, server, encode(ca), encode(user.certificate), encode(user.key))
}

// writePKI writes every certificate, key and kubeconfig that the cluster's programs read.
func writePKI(state State, subnet Subnet) error {
	ca, err := newAuthority("chandler-cluster")
	if err != nil {
		return err
	}
	// The API server trusts user names in headers from clients of this second authority: aggregated APIs.
	frontProxy, err := newAuthority("chandler-cluster-front-proxy")
	if err != nil {
		return err
	}
	tokens, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tokensPrivate, err := privatePEM(tokens)
	if err != nil {
		return err
	}
	tokensDER, err := x509.MarshalPKIXPublicKey(tokens.Public())
	if err != nil {
		return err
	}
	files := map[string][]byte{
		"pki/ca.crt":             ca.pem,
		"pki/front-proxy-ca.crt": frontProxy.pem,
		"pki/tokens.key":         tokensPrivate,
		"pki/tokens.pub":         pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: tokensDER}),
	}
	node := subnet.Node.String()
	server := "https://" + node + ":6443"
	for _, one := range []struct {
		file       string
		authority  *authority
		user       string
		group      string
		addresses  []string
		names      []string
		kubeconfig string
	}{
		{"apiserver", ca, "kube-apiserver", "", []string{"127.0.0.1", apiService, node}, []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"}, ""},
		{"apiserver-kubelet-client", ca, "kube-apiserver-kubelet-client", "system:masters", nil, nil, ""},
		{"front-proxy-client", frontProxy, "front-proxy-client", "", nil, nil, ""},
		{"kubelet", ca, "system:node:" + nodeName, "system:nodes", []string{"127.0.0.1", node}, []string{nodeName}, "settings/kubelet.kubeconfig"},
		{"controller-manager", ca, "system:kube-controller-manager", "", nil, nil, "settings/kube-controller-manager.kubeconfig"},
		{"scheduler", ca, "system:kube-scheduler", "", nil, nil, "settings/kube-scheduler.kubeconfig"},
		{"proxy", ca, "system:kube-proxy", "", nil, nil, "settings/kube-proxy.kubeconfig"},
		{"fake-nodes", ca, "fake-nodes", "system:masters", nil, nil, "settings/kwok.kubeconfig"},
		{"admin", ca, "admin", "system:masters", nil, nil, "kubeconfig"},
	} {
		var groups []string
		if one.group != "" {
			groups = []string{one.group}
		}
		issued, err := one.authority.issue(one.user, groups, one.addresses, one.names)
		if err != nil {
			return fmt.Errorf("issue a certificate for %s: %w", one.user, err)
		}
		files["pki/"+one.file+".crt"] = issued.certificate
		files["pki/"+one.file+".key"] = issued.key
		if one.kubeconfig != "" {
			files[one.kubeconfig] = kubeconfig("chandler-"+state.name(), server, ca.pem, issued)
		}
	}
	for path, content := range files {
		if err := writeFile(state.path(path), content, 0o600); err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
	}
	return nil
}
