# evstream: make help lists what it does.

MODULE_big = evstream
OBJS = $(patsubst %.c,%.o,$(sort $(wildcard src/*.c)))
EXTENSION = evstream
DATA = $(sort $(wildcard evstream--*.sql))
PGFILEDESC = "evstream - event tracking and aggregation"

PG_CPPFLAGS = -Isrc
# -Wclobbered cries wolf at PG_TRY(), as PostgreSQL knows, which goes without it.
PG_CFLAGS = -Wextra -Wno-unused-parameter -Wno-missing-field-initializers -Wno-sign-compare -Wno-clobbered
# TLS for Redis came with hiredis 1.0; src/redis.c looks for the same headers.
REDIS_TLS = $(and $(wildcard /usr/include/hiredis/hiredis_ssl.h),$(wildcard /usr/include/openssl/ssl.h))
SHLIB_LINK = -lrdkafka -lhiredis $(if $(REDIS_TLS),-lhiredis_ssl -lssl -lcrypto)

# The order of the tests: sql/schedule, where there is one.
REGRESS = $(if $(wildcard sql/schedule),$(shell sed -n 's/^test: *//p' sql/schedule),$(patsubst sql/%.sql,%,$(sort $(wildcard sql/*.sql))))
ISOLATION = $(patsubst specs/%.spec,%,$(sort $(wildcard specs/*.spec)))

BENCH_BIN = bench/evgen bench/kprobe bench/kmock bench/clockstep.so bench/latency bench/bare bench/relay
EXTRA_CLEAN = $(BENCH_BIN) results

PG_CONFIG ?= pg_config
export PG_CONFIG

# These work on a machine that has no more than make, bash and apt: PostgreSQL's
# makefiles are read only for the other targets.
HABITS = help deps demo check check-asan check-valgrind check-versions torture fuzz accept format lint bench $(BENCH_BIN)

.PHONY: $(filter-out $(BENCH_BIN),$(HABITS))

ifneq ($(filter-out $(HABITS),$(or $(MAKECMDGOALS),all)),)

ifneq ($(filter-out $(BENCH_BIN),$(filter $(HABITS),$(MAKECMDGOALS))),)
$(error run make $(filter-out $(BENCH_BIN),$(filter $(HABITS),$(MAKECMDGOALS))) by itself)
endif

ifeq ($(shell command -v $(PG_CONFIG)),)
$(error $(PG_CONFIG) not found: "make deps" installs what a build needs on Debian, or name it with PG_CONFIG=)
endif

# Bitcode for JIT inlining is of no use here, and needs clang.
ifeq ($(origin with_llvm),undefined)
override with_llvm = no
endif

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

ifeq ($(PORTNAME),linux)
SHLIB_LINK += -Wl,--version-script=scripts/exports.map
evstream.so: scripts/exports.map
endif

$(OBJS): $(wildcard src/*.h)

else

# All that a user does, in one list.
help:
	@echo 'make                  build the extension'
	@echo 'make install          install it (as root)'
	@echo 'make installcheck     SQL and isolation tests against the running server, which preloads evstream'
	@echo 'make demo             100,000 events through a throwaway server, compared with the truth'
	@echo 'make demo KAFKA=1     the same through a throwaway Kafka'
	@echo 'make demo REDIS=1     the same, and what a subscriber gets of it through a throwaway Redis'
	@echo 'make check            every test, in servers and a broker of their own'
	@echo 'make check T=name     one of them: sql/name.sql, specs/name.spec, t/name.pl, test/name.c ...'
	@echo 'make check-versions   lint and every test on PostgreSQL 15, 17 and 18, in roots of Debian releases (as root)'
	@echo 'make torture          faults of every kind at random: SEED=1 RUNS=100 FAULTS=name,name (FAULTS=list) MODES=kafka'
	@echo 'make check-asan       the tests with AddressSanitizer and UBSan in the library; also with T=name'
	@echo 'make check-valgrind   a consumer under valgrind: EVENTS=1000000'
	@echo 'make fuzz F=event SECONDS=60   libFuzzer on the parser of events; or F=settings, F=redis'
	@echo 'make accept           take the results that the last check saw as the expected ones'
	@echo 'make bench            figures of all parts, each beside a plain one of the same run'
	@echo 'make format           lay out the C files'
	@echo 'make lint             warnings as errors, exported names, scripts'
	@echo 'make deps             install what the above need (Debian, apt)'
	@echo 'make clean            remove what was built'

deps:
	@scripts/deps.sh build test

demo:
	@scripts/deps.sh build $(if $(filter-out 0,$(KAFKA)),kafka) $(if $(filter-out 0,$(REDIS)),redis)
	@KAFKA='$(KAFKA)' REDIS='$(REDIS)' scripts/demo.sh

check:
	@scripts/deps.sh build test $(if $(CI),kafka redis clients)
	@scripts/check.sh $(T)

check-versions:
	@EVSTREAM_TEST='$(T)' scripts/versions.sh $(V)

torture:
	@scripts/deps.sh build test kafka redis
	@SEED='$(SEED)' RUNS='$(RUNS)' FAULTS='$(FAULTS)' MODES='$(MODES)' scripts/torture.sh

check-asan:
	@scripts/deps.sh build test $(if $(CI),kafka redis clients)
	@EVSTREAM_SANITIZE=yes scripts/check.sh $(T)

check-valgrind:
	@scripts/deps.sh build valgrind
	@scripts/valgrind.sh '$(or $(EVENTS),1000000)'

fuzz:
	@scripts/deps.sh build fuzz
	@scripts/fuzz.sh '$(or $(F),event)' '$(or $(SECONDS),60)'

accept:
	@scripts/accept.sh

bench:
	@scripts/deps.sh build kafka redis bench
	@scripts/bench.sh

format:
	@scripts/deps.sh format
	clang-format -i $(wildcard src/*.c src/*.h bench/*.c bench/*.h test/*.c test/*.h)

lint:
	@scripts/deps.sh build test
	@scripts/lint.sh

endif

# The tools around it are plain programs. evgen may be several files.
TOOL_CFLAGS = -std=gnu99 -O2 -g -Wall -Wextra -Wno-unused-parameter -Wno-sign-compare

bench/evgen: $(wildcard bench/evgen*.c) $(wildcard bench/evgen*.h)
	$(or $(CC),cc) $(TOOL_CFLAGS) -o $@ $(filter %.c,$^) -lrdkafka -lm

bench/kprobe: bench/kprobe.c
	$(or $(CC),cc) $(TOOL_CFLAGS) -o $@ $< -lrdkafka

bench/kmock: bench/kmock.c
	$(or $(CC),cc) $(TOOL_CFLAGS) -o $@ $< -lrdkafka

bench/clockstep.so: bench/clockstep.c
	$(or $(CC),cc) $(TOOL_CFLAGS) -std=gnu11 -shared -fPIC -o $@ $< -ldl

bench/bare: bench/bare.c
	$(or $(CC),cc) $(TOOL_CFLAGS) -o $@ $< -lrdkafka -ljson-c

bench/latency: bench/latency.c bench/latency_kafka.c bench/latency.h
	$(or $(CC),cc) $(TOOL_CFLAGS) -D_GNU_SOURCE -I$(shell $(PG_CONFIG) --includedir) -o $@ $(filter %.c,$^) -L$(shell $(PG_CONFIG) --libdir) -lpq -lrdkafka

bench/relay: bench/relay.c
	$(or $(CC),cc) $(TOOL_CFLAGS) -D_GNU_SOURCE -I$(shell $(PG_CONFIG) --includedir) -o $@ $< -L$(shell $(PG_CONFIG) --libdir) -lpq -lrdkafka
