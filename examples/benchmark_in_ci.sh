#!/usr/bin/env bash
# Fail a build if a model became slower: examples/benchmark_in_ci.sh BEFORE.xml AFTER.xml [SECONDS] [ROUNDS]
# Runs of both alternate (A B A B ...), so that slow drift of the machine does not count.
set -euo pipefail

if (($# < 2)) || [[ ! ${4:-3} =~ ^[0-9]+$ ]] || ((${4:-3} < 1 || ${4:-3} == 2)); then
  echo "usage: $0 BEFORE.xml AFTER.xml [SECONDS] [ROUNDS]; ROUNDS is 1 or at least 3" >&2
  exit 2
fi
before=$1 after=$2 seconds=${3:-20} rounds=${4:-3}
results=$(mktemp -d)
trap 'rm -rf "$results"' EXIT
edgeface=${EDGEFACE:-edgeface}

for round in $(seq "$rounds"); do
  $edgeface bench run "$before" --no-peak --duration "$seconds" --warm-up "$seconds" -o "$results/before/$round"
  $edgeface bench run "$after" --no-peak --duration "$seconds" --warm-up "$seconds" -o "$results/after/$round"
done
$edgeface bench compare "$results/before" "$results/after" --across-models --fail-on-regression 5%
