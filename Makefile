# make help   lists the commands.

# The first interpreter that really is a supported one: a name on the PATH may be a shim that
# refuses to start.
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	if $$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))' \
	2>/dev/null; then echo $$p; break; fi; done)
VENV := .venv
BIN := $(VENV)/bin

SEED ?= 0
DEMO_TASK ?= metaworld/window-close
DEMO_STEPS ?= 30000
DEMO_DIR ?= runs/demo-seed$(SEED)

# Two files at a time, each on one thread: small tensors gain nothing from more.
WORKERS ?= 2

# What a world model predicts, under visual change: train, evaluate under every shift, compare.
ROBUST_TASKS ?= metaworld/window-close metaworld/faucet-close
ROBUST_TARGETS ?= pixels masks pixels+masks
ROBUST_SEEDS ?= 0 1 2
ROBUST_STEPS ?= 20000
# Further options of train.
ROBUST_OPTIONS ?=

# Imitation by what the world model predicts: record, train, evaluate, compare.
IMITATION_TASKS ?= metaworld/button-press-topdown,metaworld/drawer-open,metaworld/window-open
LIBERO_TASKS ?= libero/object/0,libero/object/3,libero/object/7
SWAPPED_TASKS ?= libero/object-swapped/0,libero/object-swapped/3,libero/object-swapped/7
IMITATION_STEPS ?= --policy-steps 3000 --evaluate-every 1500
LIBERO_STEPS ?= --policy-steps 8000 --evaluate-every 1500
SWAPPED_STEPS ?= --agent.n-obs-steps 1 --policy-steps 4000 --evaluate-every 2000
DYNAMICS_STEPS ?= --dynamics-steps 2000

# Mask2Act by what a plan foretells, by demonstrations, on other tasks, under visual change.
MASK2ACT_PLANS ?= masks points video features trajectory none
MASK2ACT_COUNTS ?= 5 20 50
MASK2ACT_SEEDS ?= 0 1
MASK2ACT_STEPS ?= --dynamics-steps 3000 --policy-steps 3000

# The paper's other rows: DreamerV2 and what is taken away from Masked World Models.
BASELINE_TASKS ?= window-close drawer-open
BASELINE_VARIANTS ?= mwm dreamer dreamer-vit vae dreamer-contrastive pixel-mask mask-25 mask-75 \
	mask-90 no-reward class-token
BASELINE_SEEDS ?= 0 1
BASELINE_STEPS ?= 50000
# The paper's own curves: scores/score.json of younggyoseo/MWM on GitHub.
PUBLISHED ?= ../shared/published/metaworld_scores.json

.PHONY: help setup unit test faults lint demo curves robustness imitation mask2act baselines \
	rlbench-check

# The recorded curves of results/curves: hours on two cores, stopped and continued at will.
CURVE_TASKS ?= metaworld/button-press metaworld/plate-slide metaworld/reach-wall \
	metaworld/faucet-close metaworld/window-close dmc/cartpole-swingup dmc/walker-walk \
	metaworld/sweep-into
CURVE_SEEDS ?= 0 1
CURVE_STEPS ?= 100000

help:
	@echo "make setup   environment in $(VENV), with exact versions (Python 3.11 or 3.12)"
	@echo "make unit    the tests without a simulator, for while you write"
	@echo "make test    every test"
	@echo "make faults  2,290 damaged inputs, 100 kills, 42 full disks: results/faults.md (minutes)"
	@echo "make rlbench-check  resets, steps, masks, demonstrations and a short training in RLBench,"
	@echo "             on a machine that has it and CoppeliaSim (docs/rlbench.md)"
	@echo "make lint    style, likely bugs and types"
	@echo "make demo    train $(DEMO_TASK) on the CPU, evaluate it beside a random policy"
	@echo "             SEED=$(SEED) DEMO_STEPS=$(DEMO_STEPS) DEMO_DIR=$(DEMO_DIR)"
	@echo "             stop it at any moment; the same command goes on from there"
	@echo "make curves  learn several tasks on the CPU, evaluate, record the curves (hours; resumable)"
	@echo "             CURVE_TASKS=... CURVE_SEEDS=\"$(CURVE_SEEDS)\" CURVE_STEPS=$(CURVE_STEPS)"
	@echo "make robustness  pixels, masks and both, trained and then evaluated under every visual"
	@echo "             shift (hours on two cores; resumable)"
	@echo "             ROBUST_TASKS=... ROBUST_TARGETS=... ROBUST_SEEDS=... ROBUST_OPTIONS=..."
	@echo "make imitation   record demonstrations, imitate them with masks, pixels and without a"
	@echo "             world model, evaluate, compare (hours on two cores; resumable)"
	@echo "make -j2 mask2act  Mask2Act with every plan, numbers of demonstrations, other tasks and"
	@echo "             visual shifts, two runs at a time (hours on two cores; resumable)"
	@echo "             MASK2ACT_PLANS=... MASK2ACT_SEEDS=\"$(MASK2ACT_SEEDS)\" MASK2ACT_STEPS=..."

	@echo "make -j2 baselines  Masked World Models beside DreamerV2 and every ablation, two runs at"
	@echo "             a time (hours on two cores; resumable)"
	@echo "             BASELINE_TASKS=... BASELINE_VARIANTS=... BASELINE_SEEDS=... BASELINE_STEPS=..."

setup: $(VENV)/.renders
	@echo "ready: $(VENV)"

PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# Two packages that LIBERO brings compile while they are installed: CMake comes from pip (its own
# folder has to be on the PATH: the command in $(BIN) does not start in pip's build environments),
# the compiler from the system.
BUILD_PACKAGES = g++ make

# The stamp is written last, so an installation that was cut off is taken up again.
$(VENV)/.installed: setup.py pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ]; then \
		echo "error: Python 3.11 or 3.12 is needed and neither was found;" \
			"install one or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; fi
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing the system's python3-venv"; export DEBIAN_FRONTEND=noninteractive; \
			apt-get update -qq && \
			apt-get install -qq -y --no-install-recommends python3-venv >/dev/null; \
		else \
			echo "error: $(PYTHON) cannot make virtual environments;" \
				"install it: sudo apt-get install python3-venv" >&2; exit 1; fi; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@command -v $${CXX:-c++} >/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing the system's C++ compiler: $(BUILD_PACKAGES)"; \
			export DEBIAN_FRONTEND=noninteractive; \
			apt-get update -qq && \
			apt-get install -qq -y --no-install-recommends $(BUILD_PACKAGES) >/dev/null; \
		else \
			echo "error: LIBERO needs a C++ compiler while it is installed;" \
				"install one: sudo apt-get install $(BUILD_PACKAGES)" >&2; exit 1; fi; }
	@echo "installing into $(VENV); PyTorch is large, this takes minutes"
	@$(PIP_INSTALL) cmake
	@PATH="$$($(BIN)/python -c 'import cmake; print(cmake.CMAKE_BIN_DIR)'):$$PATH" \
		$(PIP_INSTALL) -e '.[dev,libero]'
	@touch $@

# MuJoCo draws through EGL, which is a system library: the other thing pip cannot bring.
RENDER_CHECK = MUJOCO_GL=egl $(BIN)/python -c \
	'import mujoco; c = mujoco.GLContext(8, 8); c.make_current(); c.free()'
RENDER_PACKAGES = libegl1 libgl1 libgl1-mesa-dri

$(VENV)/.renders: $(VENV)/.installed
	@if ! $(RENDER_CHECK) >/dev/null 2>&1; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing the system's EGL library: $(RENDER_PACKAGES)"; \
			export DEBIAN_FRONTEND=noninteractive; \
			apt-get update -qq && \
			apt-get install -qq -y --no-install-recommends $(RENDER_PACKAGES) >/dev/null; \
		fi; \
		$(RENDER_CHECK) >$(VENV)/render.log 2>&1 || { \
			echo "error: MuJoCo cannot draw off screen, the system's EGL library is missing;" \
				"install it, then run make setup again:" \
				"sudo apt-get install $(RENDER_PACKAGES) (details: $(VENV)/render.log)" >&2; \
			exit 1; }; \
	fi
	@touch $@

# Needs EGL all the same: to leave tests out, pytest imports their files, and some of them mujoco.
unit: $(VENV)/.renders
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m 'not simulator'

test: $(VENV)/.renders
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile

faults: $(VENV)/.renders
	$(BIN)/python -m tests.faults --out results/faults

rlbench-check: $(VENV)/.renders
	$(BIN)/python -m tests.rlbench_check

lint: $(VENV)/.renders
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: $(VENV)/.renders
	$(BIN)/python run.py train --task $(DEMO_TASK) --preset cpu --steps $(DEMO_STEPS) \
		--seed $(SEED) --logdir $(DEMO_DIR)
	$(BIN)/python run.py evaluate --logdir $(DEMO_DIR) --episodes 20 --random --video

comma := ,
empty :=
listed = $(subst $(empty) ,$(comma),$(strip $(1)))

curves: $(VENV)/.renders
	$(BIN)/python run.py sweep --tasks $(call listed,$(CURVE_TASKS)) --seeds $(call listed,$(CURVE_SEEDS)) \
		--out runs/curves --evaluate="--episodes 20 --random" \
		-- --agent.compile --steps $(CURVE_STEPS)
	$(BIN)/python run.py record runs/curves

robustness: $(VENV)/.renders
	@set -e; for seed in $(ROBUST_SEEDS); do for task in $(ROBUST_TASKS); do \
		for target in $(ROBUST_TARGETS); do \
			run=runs/robustness/$$(echo $$task | tr / -)-$$target-seed$$seed; \
			$(BIN)/python run.py train --task $$task --preset cpu --target $$target --agent.compile \
				--steps $(ROBUST_STEPS) --seed $$seed --logdir $$run $(ROBUST_OPTIONS); \
			[ $$run/evaluation.json -nt $$run/checkpoint.pt ] || \
				$(BIN)/python run.py evaluate --logdir $$run --episodes 20 --shifts all; \
	done; done; done
	$(BIN)/python -m results.experiments.robustness runs/robustness/* --out results/robustness
	$(BIN)/python -m results.experiments.shifted_features runs/robustness/* \
		--out results/robustness_features

# $(call imitate,NAME,DATA,TASKS,options of imitate,options of evaluate)
define imitate
	$(BIN)/python run.py imitate --preset cpu --data runs/demos/$(2) --task $(3) $(4) \
		--seed 0 --logdir runs/imitation/$(1)
	[ runs/imitation/$(1)/evaluation.json -nt runs/imitation/$(1)/checkpoint.pt ] || \
		$(BIN)/python run.py evaluate --logdir runs/imitation/$(1) $(5)
endef
MASKS = --target masks $(DYNAMICS_STEPS)
PRUNING = --token-pruning 0.1,0.4,0.6,0.8,0.9

imitation: $(VENV)/.renders
	$(BIN)/python run.py collect --task $(IMITATION_TASKS) --episodes 50 --noise 0.1 \
		--environment.size 64 --out runs/demos/metaworld
	$(BIN)/python run.py collect --task $(LIBERO_TASKS) --episodes 40 --noise 0.05 \
		--environment.size 64 --out runs/demos/libero
	$(BIN)/python run.py collect --task $(SWAPPED_TASKS) --episodes 40 --noise 0.05 \
		--environment.size 64 --out runs/demos/swapped
	$(call imitate,mw3-masks-seed0,metaworld,$(IMITATION_TASKS),$(MASKS) $(IMITATION_STEPS),--episodes 20 --random --shifts all $(PRUNING) --video)
	$(call imitate,mw3-pixels-seed0,metaworld,$(IMITATION_TASKS),--target pixels $(DYNAMICS_STEPS) $(IMITATION_STEPS),--episodes 20 --shifts all $(PRUNING) --video)
	$(call imitate,mw3-none-seed0,metaworld,$(IMITATION_TASKS),--world-model none $(IMITATION_STEPS),--episodes 20 --shifts all --video)
	$(call imitate,mw3-frozen-seed0,metaworld,$(IMITATION_TASKS),$(MASKS) $(IMITATION_STEPS) --agent.no-train-backbone --dynamics-from runs/imitation/mw3-masks-seed0,--episodes 20 --shifts all)
	$(call imitate,mw3-blind-seed0,metaworld,$(IMITATION_TASKS),--world-model blind $(IMITATION_STEPS),--episodes 20)
	$(call imitate,lo3-masks-seed0,libero,$(LIBERO_TASKS),$(MASKS) $(LIBERO_STEPS),--episodes 50 --random --swap-instructions --video)
	$(call imitate,lo3-blind-seed0,libero,$(LIBERO_TASKS),--world-model blind $(LIBERO_STEPS),--episodes 50)
	$(call imitate,lo3w-masks-seed0,swapped,$(SWAPPED_TASKS),$(MASKS) --agent.dynamics.pure-noise 0.5 $(SWAPPED_STEPS),--episodes 50 --video)
	$(call imitate,lo3w-none-seed0,swapped,$(SWAPPED_TASKS),--world-model none $(SWAPPED_STEPS),--episodes 50)
	$(call imitate,lo3w-blind-seed0,swapped,$(SWAPPED_TASKS),--world-model blind $(SWAPPED_STEPS),--episodes 50)
	$(BIN)/python -m results.experiments.imitation runs/imitation/* --out results/imitation
	$(BIN)/python -m results.experiments.shifted_features \
		$(patsubst %,runs/imitation/mw3-%-seed0,masks frozen pixels none) \
		--out results/shifted_features

# One thread a run. A file NAME.done says that a run has been measured.
M2A = runs/mask2act
TASKS_mt10 = metaworld/mt10
TASKS_ml10-train = metaworld/ml10-train
TASKS_ml10-test = metaworld/ml10-test
TASKS_spatial = libero/spatial/0,libero/spatial/4,libero/spatial/8
TASKS_swapped = $(SWAPPED_TASKS)
COLLECT_metaworld = --episodes 50 --noise 0.1 --environment.camera corner2,gripperPOV
COLLECT_libero = --episodes 50 --noise 0.05

# $(call mask2act_data,NAME,suite)
define mask2act_data
runs/demos/mask2act-$(1).done: | $(VENV)/.renders
	$(BIN)/python run.py collect --task $$(TASKS_$(1)) $$(COLLECT_$(2)) \
		--environment.size 64 --out runs/demos/mask2act-$(1)
	touch $$@
endef

# $(call mask2act_run,NAME,DATA,options of imitate,options of evaluate,run whose planner it takes)
define mask2act_run
$(M2A)/$(1).done: runs/demos/mask2act-$(2).done $(if $(5),$(M2A)/$(5).done)
	$(BIN)/python run.py imitate --method mask2act --preset cpu --threads 1 \
		--data runs/demos/mask2act-$(2) --task $$(TASKS_$(2)) $$(MASK2ACT_STEPS) \
		--evaluate-every 100000 --evaluate-episodes 1 $(3) --logdir $(M2A)/$(1) \
		$(if $(5),--dynamics-from $(M2A)/$(5))
	$(if $(4),$(BIN)/python run.py evaluate --logdir $(M2A)/$(1) --episodes 20 $(4))
	touch $$@
MASK2ACT_RUNS += $(M2A)/$(1).done
endef

$(eval $(call mask2act_data,mt10,metaworld))
$(eval $(call mask2act_data,ml10-train,metaworld))
$(eval $(call mask2act_data,ml10-test,metaworld))
$(eval $(call mask2act_data,spatial,libero))
$(eval $(call mask2act_data,swapped,libero))

SHIFTED = --shifts background,distractors
# Every plan with ten demonstrations.
$(foreach seed,$(MASK2ACT_SEEDS),$(foreach plan,$(MASK2ACT_PLANS),\
	$(eval $(call mask2act_run,mt10-$(plan)-10-seed$(seed),mt10,--plan $(plan) --seed $(seed),\
	$(if $(filter $(plan),masks none features),$(SHIFTED),--video)))))
# More and fewer demonstrations, with the planner of ten.
$(foreach seed,$(MASK2ACT_SEEDS),$(foreach count,$(MASK2ACT_COUNTS),\
	$(eval $(call mask2act_run,mt10-none-$(count)-seed$(seed),mt10,\
	--plan none --demonstrations $(count) --seed $(seed),--video))\
	$(eval $(call mask2act_run,mt10-masks-$(count)-seed$(seed),mt10,\
	--plan masks --demonstrations $(count) --seed $(seed),--video,mt10-masks-10-seed$(seed)))))
# A planner of ten tasks, an executor of five others.
$(foreach seed,$(MASK2ACT_SEEDS),$(foreach plan,masks features,\
	$(eval $(call mask2act_run,ml10-train-$(plan)-10-seed$(seed),ml10-train,\
	--plan $(plan) --policy-steps 1 --seed $(seed)))\
	$(eval $(call mask2act_run,ml10-test-$(plan)-10-seed$(seed),ml10-test,\
	--plan $(plan) --seed $(seed),--video,ml10-train-$(plan)-10-seed$(seed))))\
	$(eval $(call mask2act_run,ml10-test-none-10-seed$(seed),ml10-test,\
	--plan none --seed $(seed),--video)))
$(foreach seed,$(MASK2ACT_SEEDS),$(foreach plan,masks none,$(foreach data,spatial swapped,\
	$(eval $(call mask2act_run,$(data)-$(plan)-10-seed$(seed),$(data),\
	--plan $(plan) --agent.most-objects 3 --seed $(seed),--video)))))

mask2act: export OMP_NUM_THREADS = 1
mask2act: $(MASK2ACT_RUNS)
	$(BIN)/python -m results.experiments.mask2act \
		$(patsubst %.done,%,$(filter-out $(M2A)/ml10-train%,$(MASK2ACT_RUNS))) --out results/mask2act

# One thread a run. A file TASK-VARIANT-seedN.done says that a run has been measured.
OPTIONS_mwm =
OPTIONS_dreamer = --method dreamer
OPTIONS_dreamer-vit = --method dreamer --agent.encoder vit
OPTIONS_dreamer-contrastive = --method dreamer --agent.representation contrastive
OPTIONS_vae = --agent.autoencoder.kind vae
OPTIONS_pixel-mask = --agent.autoencoder.mask pixels
OPTIONS_mask-25 = --agent.autoencoder.mask-ratio 0.25
OPTIONS_mask-75 = --agent.autoencoder.mask-ratio 0.75
OPTIONS_mask-90 = --agent.autoencoder.mask-ratio 0.9
OPTIONS_no-reward = --agent.autoencoder.reward-weight 0
OPTIONS_class-token = --agent.autoencoder.features class

# $(call baseline_run,TASK,VARIANT,SEED)
define baseline_run
runs/baselines/$(1)-$(2)-seed$(3).done: | $(VENV)/.renders
	$(BIN)/python run.py train --task metaworld/$(1) --preset cpu --agent.compile \
		--steps $(BASELINE_STEPS) $(OPTIONS_$(2)) --seed $(3) \
		--logdir runs/baselines/$(1)-$(2)-seed$(3)
	$(BIN)/python run.py evaluate --logdir runs/baselines/$(1)-$(2)-seed$(3) --episodes 20 --random
	$(BIN)/python run.py record $(2)=runs/baselines/$(1)-$(2)-seed$(3) --out results/baselines/curves
	touch $$@
BASELINE_RUNS += runs/baselines/$(1)-$(2)-seed$(3).done
endef

$(foreach seed,$(BASELINE_SEEDS),$(foreach variant,$(BASELINE_VARIANTS),\
	$(foreach task,$(BASELINE_TASKS),$(eval $(call baseline_run,$(task),$(variant),$(seed))))))

baselines: export OMP_NUM_THREADS = 1
baselines: $(BASELINE_RUNS)
	$(BIN)/python -m results.experiments.baselines results/baselines/curves \
		$(if $(wildcard $(PUBLISHED)),--published $(PUBLISHED)) --out results/baselines
