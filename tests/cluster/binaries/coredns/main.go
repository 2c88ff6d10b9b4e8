// CoreDNS with only the plugins that config/dns.yaml names: the stock build links three cloud providers' clients,
// which would triple the build's time for nothing that a test cluster without a way out could use.
package main

import (
	"github.com/coredns/coredns/coremain"

	_ "github.com/coredns/coredns/plugin/errors"
	_ "github.com/coredns/coredns/plugin/health"
	_ "github.com/coredns/coredns/plugin/kubernetes"
	_ "github.com/coredns/coredns/plugin/ready"
)

func main() { coremain.Run() }
