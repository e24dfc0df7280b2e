# Everything runs from the checkout. DEVCLOUD_DIR is the directory of its state. Only check, lint,
# docs, environment and test-unit run without root.
export DEVCLOUD_DIR ?= $(CURDIR)/.devcloud
# how many compute hosts make cloud brings up; as many as before unless told otherwise
export DEVCLOUD_HOSTS ?= $(HOSTS)
# 1 for the dashboard, 0 for none; as before unless told otherwise
export DEVCLOUD_HORIZON ?= $(HORIZON)
# 1 for Prometheus and Alertmanager, 0 for none; as before unless told otherwise
export DEVCLOUD_WATCH ?= $(WATCH)
# 1 for Cinder, 0 for none; as before unless told otherwise
export DEVCLOUD_VOLUMES ?= $(VOLUMES)
# ovs, or ovn for ML2/OVN; as before unless told otherwise
export DEVCLOUD_NETWORK ?= $(NETWORK)
PYTHON ?= python3
DEVCLOUD = PYTHONPATH=$(CURDIR) $(PYTHON) -m devcloud
VENV = $(DEVCLOUD_DIR)/venv/bin
# a worker per processor; only the unit tests share nothing
UNIT_TESTS = $(VENV)/python -m pytest -n logical --dist worksteal --durations 20 --durations-min 5 tests/unit

.PHONY: check environment check-unit install cloud down clean distclean status demo test test-older test-guest-part test-unit test-engine \
	test-engine-part test-engine-trixie test-engine-forky test-engine-containerd test-walk \
	test-cloud test-guest test-install test-install-part test-long test-ovn test-ovn-part bench-network-guest bench-clouds tempest horizon-test functional soak fuzz nightly \
	deb lint docs bench-%

# the first target: style, types and unit tests with their coverage, without root and without Docker
check: environment
	$(MAKE) --jobs 2 --output-sync=target lint check-unit

# the virtual environment, which make install makes, too
environment:
	$(DEVCLOUD) environment

install:
	$(DEVCLOUD) install

cloud:
	$(DEVCLOUD) up

down:
	$(DEVCLOUD) down

# keeps the virtual environment and the built images
clean:
	$(DEVCLOUD) clean

distclean:
	$(DEVCLOUD) clean --all

status:
	$(DEVCLOUD) status

demo:
	$(DEVCLOUD) demo

# deletes the cloud's data, by test-ovn-part; each level is a run of its own, and those that disturb nobody run two at a time
test: install
	# packages are built by a walk through the checkout, so not while a test puts a system together in it
	$(MAKE) -j 2 test-older TOX=--notest docs lint
	# the longest first; the cloud's test for leftovers bears no engine tests at its side
	$(MAKE) -j 2 test-ovn-part test-older TOX=--skip-pkg-install test-unit
	$(MAKE) -j 2 test-guest-part test-engine test-walk test-engine-part
	$(MAKE) test-cloud

# on the oldest Nova and on the one before the newest; and what deployment tools get
test-older:
	$(VENV)/tox run-parallel --parallel-no-spinner $(TOX) -e nova31,nova33,deployment

test-guest-part:
	$(VENV)/python -m pytest tests/guest

test-walk:
	$(VENV)/python -m pytest tests/engine/test_soak.py

test-unit: environment
	$(UNIT_TESTS)

check-unit: environment
	$(UNIT_TESTS) --cov --cov-report=

test-engine: LEFT_OUT = --ignore tests/engine/test_soak.py
test-engine test-cloud: test-%:
	$(VENV)/python -m pytest --durations 20 --durations-min 5 $(LEFT_OUT) tests/$*

# on the Docker Engine of a newer Debian release
test-engine-trixie test-engine-forky: test-engine-%:
	$(VENV)/python -m pytest --durations 20 --durations-min 5 --ignore tests/engine/test_soak.py \
		--engine $* tests/engine

# snapshots with containerd's image store
test-engine-containerd:
	$(VENV)/python -m pytest --durations 20 --durations-min 5 --engine forky --containerd-store \
		tests/engine/images/test_snapshot.py

# what depends most on the engine, on the newest one; it takes a quarter of the time of test-engine
test-engine-part:
	$(VENV)/python -m pytest --durations 20 --durations-min 5 --engine forky $(addprefix tests/engine/, \
		engine images runtime/test_runtime_shim.py test_events.py)

# OpenStack's own tests, on two hosts; TESTS is a regular expression of their names
tempest: export DEVCLOUD_HOSTS = $(or $(HOSTS),2)
tempest: export DEVCLOUD_VOLUMES = $(or $(VOLUMES),1)
tempest:
	$(DEVCLOUD) tempest $(if $(TESTS),'$(TESTS)')

# what depends on the network, on a cloud with ML2/OVN; deletes the cloud's data before and after
test-ovn: OVN_TESTS = --timeout 0 --every-step $(addprefix tests/cloud/test_,bridges.py cloud_init.py \
	interrupted_tasks.py moves.py outages.py ovn.py ports.py servers.py trunks.py two_hosts.py \
	bad_input.py::test_a_port_that_cannot_be_bound bad_input.py::test_neutrons_event_stays_away \
	scheduling.py::test_servers_move_at_once)
# tunnels between hosts, metadata, hot-plug and filters
test-ovn-part: OVN_TESTS = tests/cloud/test_two_hosts.py::test_a_network_spans_both_hosts[private] \
	tests/cloud/test_ports.py::test_ports_of_a_living_server \
	tests/cloud/test_ports.py::test_no_one_inside_changes_or_forges_an_address
test-ovn test-ovn-part: install
	DEVCLOUD_NETWORK= $(DEVCLOUD) clean
	DEVCLOUD_NETWORK=ovn $(VENV)/python -m pytest --durations 20 --durations-min 5 $(OVN_TESTS); \
		code=$$?; DEVCLOUD_NETWORK= $(DEVCLOUD) clean; exit $$code

# an emulated Debian, for what this machine's kernel may lack; make test has a part of it
test-guest: install
	$(VENV)/python -m pytest tests/guest --whole-guest

# installations on Debians of their own, with systemd; builds the Debians the first time
test-install: install
	$(VENV)/python -m pytest tests/install --durations 20 --durations-min 5

# the Debian packages on a host without a cloud
test-install-part: install
	$(VENV)/python -m pytest --durations 20 --durations-min 5 $(addprefix tests/install/test_packages.py::test_, \
		packages_have_the_commands_with_their_pages_and_no_more a_container_outlives_upgrade_removal_and_purge)

# bench-network where the kernel has the datapath of Open vSwitch
bench-network-guest: install
	$(VENV)/python -m tests.guest trixie tests/guest/inside/measure.py

# a tenant's day in the dashboard, in a browser; with PICTURES the documentation's are taken anew
horizon-test:
	DEVCLOUD_HORIZON=1 $(DEVCLOUD) up
	$(DEVCLOUD) browser
	$(if $(PICTURES),HORIZON_PICTURES=$(CURDIR)/docs/pictures) PYTHONPATH=$(CURDIR) \
		$(DEVCLOUD_DIR)/horizon/venv/bin/python -m pytest --confcutdir=tests/horizon tests/horizon

# Nova's own functional tests with the driver in place of the fake one; TESTS is a regular expression
functional: install
	$(VENV)/python -m pytest tests/functional
	PYTHONPATH=$(CURDIR) $(VENV)/python -m tests.functional $(if $(TESTS),'$(TESTS)')

# parsers of hostile input, with twenty times the examples of make test-unit, other ones each time
fuzz: environment
	$(VENV)/python -m pytest --timeout 0 -n logical --dist worksteal -m hypothesis \
		--hypothesis-profile nightly tests/unit

# a random walk through what is asked of a server; another one each day
soak: install
	$(VENV)/python -m pytest -s --timeout 0 tests/engine/test_soak.py \
		--steps $(or $(STEPS),5000) --seed $(or $(SEED),$(shell date +%Y%m%d))

# deaths at every step, moves through a registry, outages of minutes, snapshots of snapshots
test-long: install
	$(VENV)/python -m pytest --timeout 0 tests/engine/images/test_snapshot.py -k generations --generations 150
	$(VENV)/python -m pytest --timeout 0 tests/engine/operations/test_crashes.py --every-point
	$(VENV)/python -m pytest --timeout 0 -s tests/engine/network/test_many_ports.py --ports 100
	$(VENV)/python -m pytest --timeout 0 --stock $(addprefix tests/engine/runtime/test_, \
		stock_services.py inits.py nested_engines.py)
	$(VENV)/python -m pytest --timeout 0 --every-step --outage 300 $(addprefix tests/cloud/test_, \
		bad_input.py boot_volumes.py cloud_init.py engines.py interrupted_moves.py interrupted_tasks.py \
		nesting.py orphans.py outages.py registry_moves.py scheduling.py servers.py volumes.py)

# what is too long for make test; a part that fails holds back no other
nightly:
	$(MAKE) --keep-going fuzz functional tempest test-guest test-install test-long \
		test-engine-trixie test-engine-forky test-engine-containerd horizon-test soak test-ovn

# Debian packages in dist/, without network; the packages of Build-Depends must be installed
deb:
	debian/build dist

lint: environment
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy
	$(VENV)/lint-imports --no-logo

docs: environment
	$(VENV)/python docs/pictures/draw.py
	$(VENV)/sphinx-build -W -b html docs docs/build/html
	$(VENV)/sphinx-build -W -b man docs/man docs/build/man

# how the cloud differs between the kinds of network; deletes the cloud's data before and after
bench-clouds: install
	$(VENV)/python benchmarks/clouds.py

# make bench-boot runs benchmarks/boot.py
bench-%: install
	$(DEVCLOUD) up
	$(VENV)/python benchmarks/$*.py
