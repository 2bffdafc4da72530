"""Writes tests/operators.txt: every operator of the ONNX standard, by name, with the versions at which its schema changed.

    python operators.py > ../operators.txt
"""
from onnx import defs

versions = {}
for schema in defs.get_all_schemas_with_history():
    versions.setdefault((schema.domain, schema.name), set()).add(schema.since_version)
print(f"""# Every operator of the ONNX standard with the versions of its domain at which its schema changed, up to opset
# {defs.onnx_opset_version()}: what the table of rules has to know. Written by tests/conformance/operators.py from the onnx package.""")
for (domain, name), since in sorted(versions.items()):
    print(f"{domain}.{name}" if domain else name, *sorted(since))
