# Each target installs what it needs first: see scripts/setup.sh.

SUBJECT ?= all
RATE ?=
SCENARIO ?=
SHIKA ?=
ROUNDS ?= 5
TARGET ?= http1
SECONDS ?= 600

# Tools installed under target/tools win over those of the machine.
export PATH := $(CURDIR)/target/tools/bin:$(PATH)

.PHONY: help demo demo-zones zone-faults control-planes images test test-compose bench bench-sidecar instructions release load load-report fuzz fmt lint setup

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: ## Two services, two sidecars, one control plane: a call over mutual TLS, then its denial
	@scripts/setup.sh build curl
	@demo/run.sh

demo-zones: ## Two zones and a global control plane in network namespaces (root): calls across, a cut link, a killed control plane
	@scripts/setup.sh build curl netns
	@demo/zones.sh

zone-faults: ## What each fault costs (root): two zones under load, every process killed, every cable pulled in turn
	@scripts/setup.sh build curl netns
	@loadtest/zone-faults.sh

control-planes: ## Public control planes (go-control-plane, sovereign) drive Shika and Envoy; what each makes of them is compared
	@scripts/setup.sh build envoy sovereign go
	cargo build --locked -p shika-proxy
	loadtest/control-planes/run.py sovereign
	loadtest/control-planes/run.py go-control-plane

images: ## Static programs and container images (Docker)
	@scripts/setup.sh build docker
	@scripts/images.sh

test: ## Formatting, clippy, licences, every test, parity with Envoy
	@scripts/setup.sh build lint deny envoy peers curl netns sovereign prometheus valgrind
	@scripts/test.sh

test-compose: ## The same with docker compose and a real Prometheus (root where no engine runs)
	@scripts/setup.sh build curl docker
	@scripts/test-compose.sh

instructions: ## Instructions of each operation against their baseline: make instructions [BLESS=1] [ONLY=part-of-a-name] [KEEP=directory]
	@scripts/setup.sh build valgrind
	@scripts/instructions.sh $(if $(BLESS),--bless) $(if $(ONLY),--only '$(ONLY)') $(if $(KEEP),--keep '$(KEEP)')

bench-sidecar: ## DNS under dnsperf while names change, and the delay of a server that speaks first (root)
	@scripts/setup.sh build curl netns dnsperf
	@scripts/bench-sidecar.sh

release: ## The program laid out by what it does under load, target/optimized/shika-proxy: two builds, 20 to 30 minutes on two cores
	@scripts/setup.sh build profdata
	@scripts/release.sh

load: ## Shika beside Envoy, HAProxy and nginx: make load SCENARIO=pair_* ROUNDS=5 SUBJECT=all|both|shika,envoy RATE=5000 SHIKA=binary (loadtest/README.md)
	@scripts/setup.sh build envoy loadpeers
	cargo build --release --locked $(if $(SHIKA),,-p shika-proxy) -p shika-loadtest
	target/release/shika-loadtest bench --subject $(SUBJECT) --rounds $(ROUNDS) --out-dir target/load \
	    $(if $(SHIKA),--shika '$(SHIKA)') \
	    $(if $(SCENARIO),--scenario '$(SCENARIO)') $(if $(RATE),--rate $(RATE))

load-report: ## What `make load` has measured, as target/load/report.html with plots
	@scripts/setup.sh build
	cargo build --release --locked -p shika-loadtest
	target/release/shika-loadtest report --out-dir target/load

bench: load ## The same as load

fuzz: ## Look for inputs that break a promise: make fuzz TARGET=http1 SECONDS=600 (targets: fuzz/README.md)
	@scripts/setup.sh build fuzz
	@scripts/fuzz.sh $(TARGET) $(SECONDS)

fmt: ## Format the code
	@scripts/setup.sh lint
	cargo fmt --all

lint: ## Formatting, clippy, licences
	@scripts/setup.sh build lint deny
	@scripts/test.sh lint

setup: ## Install everything that the other targets need
	@scripts/setup.sh build lint deny envoy peers curl netns sovereign prometheus valgrind
