"""Receiving: business rules between orders and inventory, without tables of its own."""
