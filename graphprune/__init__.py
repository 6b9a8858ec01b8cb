"""graphprune"""
