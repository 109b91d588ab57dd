package main

import (
	"fmt"
	"net/netip"
)

// The addresses inside a cluster are the same in every cluster, because each
// has a network namespace of its own.
const (
	podCIDR     = "10.244.0.0/16"
	podSubnet   = "10.244.0.0/24" // of the one real node
	serviceCIDR = "10.96.0.0/16"
	apiService  = "10.96.0.1"
	dnsService  = "10.96.0.10"
	// registryService is the address at which a story may run a plain-http registry.
	registryService = "10.96.0.50:5000"
)

// Subnet is the /30 between the machine and one cluster: two addresses.
type Subnet struct {
	Machine netip.Addr `json:"machine"`
	Node    netip.Addr `json:"node"`
}

// linkRange is cut into 16,384 subnets of four addresses each.
var linkRange = netip.MustParsePrefix("10.245.0.0/16")

func (s Subnet) prefix() netip.Prefix { return netip.PrefixFrom(s.Machine, 30).Masked() }

// chooseSubnet returns the first /30 of the range that overlaps nothing in use:
// the machine's addresses and routes, which include the other clusters'.
func chooseSubnet(used []netip.Prefix) (Subnet, error) {
	for base := linkRange.Addr(); linkRange.Contains(base); {
		candidate := netip.PrefixFrom(base, 30)
		next := base
		for range 4 {
			next = next.Next()
		}
		if !overlapsAny(candidate, used) {
			return Subnet{Machine: base.Next(), Node: base.Next().Next()}, nil
		}
		base = next
	}
	return Subnet{}, fmt.Errorf("every address of %s is in use on this machine: take clusters down, or this network's route away", linkRange)
}

func overlapsAny(candidate netip.Prefix, used []netip.Prefix) bool {
	for _, prefix := range used {
		// A default route covers everything and says nothing.
		if prefix.Bits() > 0 && prefix.Overlaps(candidate) {
			return true
		}
	}
	return false
}
