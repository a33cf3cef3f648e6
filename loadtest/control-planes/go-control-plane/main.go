// A control plane on go-control-plane's cache and servers (gRPC, delta, REST gateway), with the snapshots of its own test server. Each line on standard
// input makes the next snapshot the one that is served; its version is printed.
//
// Two things differ from the test server's snapshots: endpoints are a random choice of the upstreams, and connection managers keep no access log at a
// gRPC collector.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"log"
	"math/rand"
	"os"
	"strconv"
	"strings"
	"time"

	endpoint "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listener "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	hcm "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	"github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/config"
	"github.com/envoyproxy/go-control-plane/pkg/server/sotw/v3"
	"github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"github.com/envoyproxy/go-control-plane/pkg/test"
	"github.com/envoyproxy/go-control-plane/pkg/test/resource/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

func main() {
	mode := flag.String("xds", resource.Ads, "ads, delta-ads, xds, delta or rest")
	node := flag.String("node", "test-id", "the proxy's node")
	port := flag.Uint("port", 18000, "port of the gRPC services")
	gateway := flag.Uint("gateway", 18001, "port of the REST gateway")
	base := flag.Uint("base", 9000, "port of the first listener")
	upstreams := flag.String("upstreams", "", "ports of the upstreams, with commas between")
	tls := flag.Bool("tls", false, "listeners have TLS with secrets by SDS")
	flag.Parse()
	resource.RefreshDelay = 200 * time.Millisecond

	ctx := context.Background()
	ads := *mode == resource.Ads
	snapshots := cache.NewSnapshotCache(ads || *mode == resource.DeltaAds, cache.IDHash{}, nil)
	var options []config.XDSOption
	if ads {
		options = append(options, sotw.WithOrderedADS())
	}
	srv := server.NewServer(ctx, snapshots, nil, options...)
	go test.RunManagementServer(ctx, srv, *port)
	go test.RunManagementGateway(ctx, srv, *gateway)

	var ports []uint32
	for _, text := range strings.Split(*upstreams, ",") {
		number, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			log.Fatal(err)
		}
		ports = append(ports, uint32(number))
	}
	chance := rand.New(rand.NewSource(1))
	lines := bufio.NewScanner(os.Stdin)
	for number := 0; lines.Scan(); number++ {
		made := resource.TestSnapshot{
			Xds:              *mode,
			Version:          fmt.Sprintf("v%d", number),
			UpstreamPort:     ports[0],
			BasePort:         uint32(*base),
			NumClusters:      4,
			NumHTTPListeners: 3,
			NumTCPListeners:  2,
			TLS:              *tls,
		}
		snapshot := made.Generate()
		for _, one := range snapshot.Resources[types.Endpoint].Items {
			spread(one.Resource.(*endpoint.ClusterLoadAssignment), chance, ports)
		}
		for _, one := range snapshot.Resources[types.Listener].Items {
			withoutAccessLog(one.Resource.(*listener.Listener))
		}
		if err := snapshot.Consistent(); err != nil {
			log.Fatal(err)
		}
		if err := snapshots.SetSnapshot(ctx, *node, snapshot); err != nil {
			log.Fatal(err)
		}
		fmt.Println(made.Version)
	}
}

// spread gives an assignment some of the upstreams, at least one.
func spread(assignment *endpoint.ClusterLoadAssignment, chance *rand.Rand, ports []uint32) {
	chosen := chance.Perm(len(ports))[:1+chance.Intn(len(ports))]
	var all []*endpoint.LbEndpoint
	for _, at := range chosen {
		all = append(all, resource.MakeEndpoint(assignment.ClusterName, ports[at]).Endpoints[0].LbEndpoints...)
	}
	assignment.Endpoints[0].LbEndpoints = all
}

func withoutAccessLog(from *listener.Listener) {
	for _, chain := range from.FilterChains {
		for _, filter := range chain.Filters {
			manager := &hcm.HttpConnectionManager{}
			if filter.GetTypedConfig().UnmarshalTo(manager) != nil {
				continue
			}
			manager.AccessLog = nil
			packed, err := anypb.New(manager)
			if err != nil {
				log.Fatal(err)
			}
			filter.ConfigType = &listener.Filter_TypedConfig{TypedConfig: packed}
		}
	}
}
