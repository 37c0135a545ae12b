"""Tagged rows and trees of all three kinds."""

from __future__ import annotations

from django.db import models
from taggit.managers import TaggableManager
from treebeard.al_tree import AL_Node
from treebeard.mp_tree import MP_Node
from treebeard.ns_tree import NS_Node


class Paper(models.Model):
    """Has tags of django-taggit."""

    title = models.CharField(max_length=50)
    tags = TaggableManager()

    def __str__(self) -> str:
        return self.title


class Subject(MP_Node):  # type: ignore[misc]  # no types
    """A tree by materialised paths."""

    name = models.CharField(max_length=50)

    def __str__(self) -> str:
        return self.name


class Region(NS_Node):  # type: ignore[misc]  # no types
    """A tree by nested sets."""

    name = models.CharField(max_length=50)

    def __str__(self) -> str:
        return self.name


class Department(AL_Node):  # type: ignore[misc]  # no types
    """A tree by parents, its siblings numbered."""

    name = models.CharField(max_length=50)
    parent = models.ForeignKey(
        "self", on_delete=models.CASCADE, null=True, related_name="children_set"
    )
    sib_order = models.PositiveIntegerField()

    def __str__(self) -> str:
        return self.name
