package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// programs are the node's programs in the order of their start. etcd,
// containerd and the API server start together; the API server waits for etcd
// by itself. The others would only fail and back off before the API answers.
func programs(state State, record Record) []program {
	node := record.Subnet.Node.String()
	bin := func(name string) string { return filepath.Join(record.Bin, name) }
	pki := func(name string) string { return state.path("pki", name) }
	settings := func(name string) string { return state.path("settings", name) }

	client := apiClient(state)
	apiReady := when(func() bool { return answers(client, "https://"+node+":6443/readyz") })
	nodeReady := when(func() bool {
		<-apiReady
		return accepts("unix", state.containerdSocket())
	})

	etcd := program{name: "etcd", path: bin("etcd"), args: []string{
		"--data-dir=" + state.path("data", "etcd"),
		"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
		"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=default=http://127.0.0.1:2380",
		// The data ends with the cluster, so it need not survive a power cut.
		"--unsafe-no-fsync",
	}}
	apiServer := program{name: "kube-apiserver", path: bin("kube-apiserver"), args: append([]string{
		"--etcd-servers=http://127.0.0.1:2379",
		"--bind-address=0.0.0.0", "--advertise-address=" + node,
		"--service-cluster-ip-range=" + serviceCIDR,
		"--tls-cert-file=" + pki("apiserver.crt"), "--tls-private-key-file=" + pki("apiserver.key"),
		"--client-ca-file=" + pki("ca.crt"),
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + pki("tokens.pub"), "--service-account-signing-key-file=" + pki("tokens.key"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged",
		"--kubelet-client-certificate=" + pki("apiserver-kubelet-client.crt"), "--kubelet-client-key=" + pki("apiserver-kubelet-client.key"),
		"--kubelet-certificate-authority=" + pki("ca.crt"),
		// The node's name is in no DNS.
		"--kubelet-preferred-address-types=InternalIP",
		"--requestheader-client-ca-file=" + pki("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file=" + pki("front-proxy-client.crt"), "--proxy-client-key-file=" + pki("front-proxy-client.key"),
		"--enable-aggregator-routing",
	}, auditArguments(state, record.Options)...)}
	controllers := program{name: "kube-controller-manager", path: bin("kube-controller-manager"), after: apiReady, args: append([]string{
		"--kubeconfig=" + settings("kube-controller-manager.kubeconfig"), "--bind-address=127.0.0.1",
		"--service-account-private-key-file=" + pki("tokens.key"), "--root-ca-file=" + pki("ca.crt"), "--use-service-account-credentials",
		"--cluster-cidr=" + podCIDR, "--leader-elect=false",
	}, controllerArguments(record.Options)...)}
	if record.Options.NoNode {
		return []program{etcd, apiServer, controllers}
	}

	list := []program{
		etcd,
		{name: "containerd", path: bin("containerd"), args: []string{"--config=" + settings("containerd.toml")}},
		apiServer,
		controllers,
		{name: "kube-scheduler", path: bin("kube-scheduler"), after: apiReady, args: []string{
			"--kubeconfig=" + settings("kube-scheduler.kubeconfig"), "--bind-address=127.0.0.1", "--leader-elect=false",
		}},
		{name: "kubelet", path: bin("kubelet"), after: nodeReady, args: append([]string{
			"--config=" + settings("kubelet.yaml"), "--kubeconfig=" + settings("kubelet.kubeconfig"),
			"--hostname-override=" + nodeName, "--node-ip=" + node,
			"--root-dir=" + state.path("data", "kubelet"), "--cert-dir=" + state.path("pki"),
		}, gpuNodeLabels(record.Options)...)},
		{name: "kube-proxy", path: bin("kube-proxy"), after: apiReady, args: []string{
			"--config=" + settings("kube-proxy.yaml"), "--hostname-override=" + nodeName,
		}},
	}
	if record.Options.GPUs > 0 {
		list = append(list, program{name: "device-plugin", path: bin("chandler-cluster"), after: nodeReady, args: []string{
			"device-plugin", fmt.Sprintf("--count=%d", record.Options.GPUs),
		}})
	}
	if record.Options.FakeNodes > 0 {
		list = append(list, program{name: "kwok", path: bin("kwok"), after: apiReady, args: kwokArguments(state, node)})
	}
	return list
}

// played are the controllers of a cluster without a node: those that make and
// clear away what objects ask for. Nobody binds claims or looks after nodes
// there: whoever uses such a cluster plays that.
var played = []string{
	"deployment-controller", "replicaset-controller", "job-controller", "disruption-controller", "garbage-collector-controller",
	"namespace-controller", "persistentvolumeclaim-protection-controller", "resourcequota-controller", "serviceaccount-controller",
}

func controllerArguments(options Options) []string {
	if !options.NoNode {
		return []string{"--kube-api-qps=100", "--kube-api-burst=200"}
	}
	return []string{
		"--controllers=" + strings.Join(played, ","),
		// Nothing else takes the machine's time, and thousands of objects come at once.
		"--kube-api-qps=2000", "--kube-api-burst=4000",
		"--concurrent-deployment-syncs=20", "--concurrent-replicaset-syncs=20", "--concurrent-job-syncs=20",
		"--concurrent-gc-syncs=20", "--concurrent-namespace-syncs=20",
	}
}

func auditArguments(state State, options Options) []string {
	if !options.Audit {
		return nil
	}
	return []string{"--audit-policy-file=" + state.path("settings", "audit.yaml"), "--audit-log-path=" + state.log("audit")}
}

// required are the programs that a cluster needs in its folder.
func required(options Options) []string {
	if options.NoNode {
		return []string{"chandler-cluster", "etcd", "kube-apiserver", "kube-controller-manager"}
	}
	names := []string{
		"chandler-cluster", "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy",
		"containerd", "containerd-shim-runc-v2", "ctr", "runc", "ptp", "host-local", "loopback", "portmap", "images",
	}
	if options.FakeNodes > 0 {
		names = append(names, "kwok", "kwok-stages.yaml")
	}
	return names
}

func checkPrograms(bin string, options Options) error {
	for _, name := range required(options) {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			return fmt.Errorf("the program %s is missing in %s: run e2e/cluster/build first (with the group kwok for --fake-nodes)", name, bin)
		}
	}
	return nil
}

// apiClient trusts this cluster's API server and says nothing about itself.
func apiClient(state State) *http.Client {
	roots := x509.NewCertPool()
	if ca, err := os.ReadFile(state.path("pki", "ca.crt")); err == nil {
		roots.AppendCertsFromPEM(ca)
	}
	return &http.Client{
		Timeout:   2 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
	}
}

func answers(client *http.Client, url string) bool {
	response, err := client.Get(url)
	if err != nil {
		return false
	}
	response.Body.Close()
	return response.StatusCode == http.StatusOK
}

func accepts(network, address string) bool {
	connection, err := net.Dial(network, address)
	if err != nil {
		return false
	}
	connection.Close()
	return true
}
