"""Fails where a conformance report holds a case that neither passes nor stands, with its reason, in known.txt.

    python gate.py REPORT.json [REPORT.json ...]
"""
import json
import os
import sys


def known():
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "known.txt")
    with open(path) as lines:
        return {line.split("#")[0].strip() for line in lines if line.split("#")[0].strip()}


def main():
    allowed, passed, bad = known(), 0, []
    for path in sys.argv[1:]:
        with open(path) as f:
            for case in json.load(f)["cases"]:
                second = case.get("order2") or {}
                status = case["status"] if case["status"] != "pass" else second.get("status", "pass")
                if status in ("pass", "rough", "unmeasurable"):
                    passed += status == "pass"
                elif case["name"].partition("@")[0] not in allowed and case["name"] not in allowed:
                    bad.append(f"{status:8} {case['name']}: {str(case.get('detail') or case.get('reason') or '')[:160]}")
    print("\n".join(bad))
    print(f"{passed} passed, {len(bad)} failed")
    return bool(bad) or passed == 0


if __name__ == "__main__":
    sys.exit(main())
