package main

import (
	"net/netip"
	"testing"
)

func TestChoosesTheFirstFreeSubnet(t *testing.T) {
	for _, one := range []struct {
		why           string
		used          []string
		machine, node string
	}{
		{"nothing is in use", nil, "10.245.0.1", "10.245.0.2"},
		{"a default route says nothing", []string{"0.0.0.0/0"}, "10.245.0.1", "10.245.0.2"},
		{"one cluster runs", []string{"10.245.0.0/30"}, "10.245.0.5", "10.245.0.6"},
		{"a gap is filled", []string{"10.245.0.0/30", "10.245.0.8/30"}, "10.245.0.5", "10.245.0.6"},
		{"a single address blocks its four", []string{"10.245.0.3/32"}, "10.245.0.5", "10.245.0.6"},
		{"the machine routes half of the range", []string{"10.245.0.0/17"}, "10.245.128.1", "10.245.128.2"},
		{"subnets go on past a byte", []string{"10.245.0.0/24"}, "10.245.1.1", "10.245.1.2"},
	} {
		t.Run(one.why, func(t *testing.T) {
			var used []netip.Prefix
			for _, text := range one.used {
				used = append(used, netip.MustParsePrefix(text))
			}
			subnet, err := chooseSubnet(used)
			if err != nil {
				t.Fatal(err)
			}
			if subnet.Machine.String() != one.machine || subnet.Node.String() != one.node {
				t.Fatalf("chose %s and %s, not %s and %s", subnet.Machine, subnet.Node, one.machine, one.node)
			}
		})
	}
}

func TestSaysWhenNoSubnetIsFree(t *testing.T) {
	if subnet, err := chooseSubnet([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}); err == nil {
		t.Fatalf("chose %v although the machine routes all of 10.0.0.0/8", subnet)
	}
}
