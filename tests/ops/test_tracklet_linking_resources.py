"""What the CUDA kernels in the native module take."""

import pytest

from art_kernels import compile as compiler
from art_kernels.tracklet_linking import extension, resources

USAGE = """
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _ZN3art9link_manyIfLi64ELi4EEEvNS_10FramePairsENS_6MethodENS_5LinksE:
  REG:80 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:472 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _ZN3art7composeENS_10CompositionE:
  REG:40 STACK:8 SHARED:16 LOCAL:4 CONSTANT[0]:424 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin elf code:
================
arch = sm_90
 Function other:
  REG:9 STACK:0 SHARED:1024 LOCAL:0 CONSTANT[0]:424 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


def test_the_tool_s_words_are_read():
    assert list(resources.parse(USAGE)) == [
        resources.Kernel("link_many.f32.64.4", "sm_80", 80, 0, 0),
        resources.Kernel("compose", "sm_80", 40, 12, 16),
        resources.Kernel("other", "sm_90", 9, 0, 1024),
    ]


def test_local_memory_is_a_fault(monkeypatch):
    monkeypatch.setattr(resources, "kernels", lambda: resources.parse(USAGE))
    reports = compiler.native_reports(["sm_80"])
    assert [(report.name, report.error) for report in reports] == [
        ("tracklet_linking.link_many.f32.64.4", ""),
        ("tracklet_linking.compose", "12 bytes of local memory"),
    ]
    assert reports[1].line(30) == (
        "tracklet_linking.compose        sm_80           40     12      16      0            0       0  "
        "12 bytes of local memory"
    )


def test_no_kernel_of_the_module_uses_local_memory():
    pytest.importorskip("triton", reason="the tool that reads machine code is in Triton's wheel")
    if not extension.has_cuda():
        assert list(resources.kernels()) == []
        pytest.skip("the native module was built without CUDA")
    found = list(resources.kernels())
    assert {"sm_80", "sm_86", "sm_89", "sm_90"} <= {kernel.target for kernel in found}
    assert [kernel for kernel in found if kernel.local] == []
    assert all("_Z" not in kernel.name for kernel in found)
