"""Tests of regops."""
